"""Why a model could not be loaded, in one line."""

from __future__ import annotations

from capture.errors import OutliersError


def load_error(what: str, error: Exception) -> OutliersError:
    """Line that tells why `what` could not be loaded."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return OutliersError(
        f"cannot load the {what} ({reason[:300]}); expected a Hugging Face id that can be reached, "
        "a local folder, a .gguf file, or smollm2-135m"
    )
