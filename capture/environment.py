"""What running a model needs: its packages, and quiet libraries."""

from __future__ import annotations

import importlib.util
import os
import sys

from capture.errors import OutliersError

_HEAVY = ("torch", "transformers", "nnsight")


def require_capture_extra() -> None:
    """Refuse where the packages of the capture stage are not installed.

    Raises
    ------
    OutliersError
        One of them is missing.
    """
    missing = [name for name in _HEAVY if importlib.util.find_spec(name) is None]
    if missing:
        raise OutliersError(
            f"{' and '.join(missing)} not installed, which running a model needs; "
            "install with: pip install 'outlier-features[capture]'"
        )


def prepare() -> None:
    """Check what running a model needs, and keep the libraries' own talk off standard error."""
    require_capture_extra()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # their bars are no plain lines
    from capture.models.load import silence_libraries

    silence_libraries()
