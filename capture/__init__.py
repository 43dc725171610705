"""Capture stage: run a language model once and keep what enters its norms in a Zarr store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.run import capture as capture

__all__ = ["capture"]


def __getattr__(name: str) -> Any:
    """Import the capture stage only when it is used: the analysis side shares this package."""
    if name == "capture":
        from capture.run import capture

        return capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
