"""Where a figure may go, and writing it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from capture.errors import OutliersError
from capture.store.files import write_file
from capture.store.output import output_file, output_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SUFFIXES: Final = (".png", ".svg")


def check_path(path: Path | str) -> Path:
    """Refuse a figure file that is neither PNG nor SVG, or has no folder to lie in."""
    path = output_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutliersError(f"{path} has the suffix {path.suffix!r}; expected a figure file ending in .png or .svg")
    return output_file(path)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG or SVG, by its suffix: the same figure gives the same bytes.

    Raises
    ------
    OutliersError
        Another suffix, no such folder, or a file that cannot be written.
    """
    from matplotlib import rc_context

    path = check_path(path)
    # No date and no version inside, and no random names for the parts of an SVG.
    metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "outlier-features"}):
        figure.savefig(content, format=path.suffix.lower()[1:], dpi=150, metadata=metadata)
    write_file(path, content.getvalue())
