"""A store opened by zarr-python: its group, and its arrays whole, once nothing in them can surprise that library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.store.create import stored_array
from capture.store.files import refuse_special
from capture.store.location import Folder
from capture.store.metadata import MOST_JSON, TOKEN_TEXTS, read_metadata
from capture.store.paths import user_path
from capture.store.schema import COORDINATES, VARIABLES, VOCABULARY

if TYPE_CHECKING:
    import zarr  # what only reads a store does without


def read_array(group: zarr.Group, path: Path, name: str) -> npt.NDArray[Any]:
    """A whole array of an open store at `path`, and ValueError where a file of it cannot be one."""
    array = stored_array(group, name)
    refuse_special(path / name, read_metadata(Folder(path)).arrays[name].file_bytes + MOST_JSON)
    return np.asarray(array[...])


def open_group(path: Path | str) -> zarr.Group:
    """Open a store for reading and check that it is one that this version knows.

    Raises
    ------
    OutliersError
        Nothing is there, it is no store of this format, its metadata are damaged, or it has a newer format version.
    """
    import zarr

    path = user_path(path)
    read_metadata(Folder(path))
    for name in (*VARIABLES, *COORDINATES, VOCABULARY, *TOKEN_TEXTS):
        file = path / name / "zarr.json"
        if file.exists() and not file.is_file():
            raise OutliersError(f"{file} is no plain file; get another copy of the store")
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutliersError(
            f"the metadata of {path} are damaged ({type(error).__name__}: {error}); restore zarr.json from a copy"
        ) from error
