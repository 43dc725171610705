"""Configurations of published models that come along, for what needs no weights where the hub is out of reach."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Inside the package where it is installed; in a checkout, where the files lie.
_FOLDERS: Final = (Path(__file__).parent / "configurations", Path(__file__).parents[2] / "data" / "models")


def shipped_configuration(model: str) -> Path | None:
    """File of a model's configuration, None where none comes along.

    Parameters
    ----------
    model : Hugging Face id, such as Qwen/Qwen3-8B
    """
    files = (folder / f"{model.replace('/', '--')}.json" for folder in _FOLDERS)
    return next((file for file in files if file.is_file()), None)
