"""Why a model could not be loaded, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from capture.errors import OutliersError


@contextmanager
def one_reason(what: str) -> Iterator[None]:
    """Tell in one line why another library could not load `what`: files can be damaged in more ways than it checks."""
    try:
        yield
    except OutliersError:
        raise
    except Exception as error:
        raise load_error(what, error) from error


def load_error(what: str, error: Exception) -> OutliersError:
    """Line that tells why `what` could not be loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError):  # whose words alone say nothing
        reason = f"{type(error).__name__}: {reason}"
    return OutliersError(
        f"cannot load the {what} ({reason[:300]}); expected a Hugging Face id that can be reached, "
        "a local folder, a .gguf file, or smollm2-135m"
    )
