"""Which files belong to a store, by its format. Whatever else lies in its folder is a stranger: never handed on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capture.store.metadata import TOKEN_TEXTS, ArrayMetadata
from capture.store.schema import CHECKSUMS, COORDINATES, RECORDS, VARIABLES, VOCABULARY

_ARRAYS: Final = frozenset((*VARIABLES, *COORDINATES, *TOKEN_TEXTS))
_SINGLE: Final = frozenset(("zarr.json", CHECKSUMS, f"{VOCABULARY}/zarr.json"))
_FOLDERS: Final = frozenset((*_ARRAYS, VOCABULARY, *RECORDS))
_CHUNK: Final = re.compile(r"c(\.\d+)*")
_RECORD: Final = re.compile(rf"({'|'.join(RECORDS)})/[^/.][^/]*\.json")
_LEFTOVER: Final = re.compile(r"\..*\.partial|\.views")  # of killed writers; cached views of earlier releases


@dataclass
class Contents:
    """What lies in the folder of a store, each by its name there.

    Parameters
    ----------
    members : files of the store
    leftovers : hidden ones that writers of a store left; nobody's loss
    strangers : everything else; a folder without members as one, with `/` at its end
    """

    members: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


def is_member(name: str, arrays: Mapping[str, ArrayMetadata] | None = None) -> bool:
    """Whether a file belongs to a store.

    Parameters
    ----------
    name : in the store's folder, with `/`
    arrays : those of the store, so that no file of another array or behind the end of one counts; any where None
    """
    if name in _SINGLE or _RECORD.fullmatch(name):
        return True
    array, _, last = name.rpartition("/")
    if array not in (_ARRAYS if arrays is None else arrays):
        return False
    if last == "zarr.json":
        return True
    if not _CHUNK.fullmatch(last) or arrays is None:
        return _CHUNK.fullmatch(last) is not None
    about, file = arrays[array], tuple(map(int, last.split(".")[1:]))
    inside = len(file) == len(about.files) and all(n < size for n, size in zip(file, about.files, strict=True))
    return inside and about.key(file) == name


def contents(store: Path, arrays: Mapping[str, ArrayMetadata] | None = None) -> Contents:
    """What lies in the folder of a store; links are not followed, and count as what their name says.

    Parameters
    ----------
    store : its folder
    arrays : as for `is_member`
    """
    found = Contents()
    _visit(store, "", arrays, found)
    return found


def _visit(store: Path, folder: str, arrays: Mapping[str, ArrayMetadata] | None, found: Contents) -> None:
    for entry in sorted(os.scandir(store / folder), key=lambda entry: entry.name):
        name = f"{folder}{entry.name}"
        directory = entry.is_dir(follow_symlinks=False)
        known = name in _FOLDERS and (arrays is None or name not in _ARRAYS or name in arrays)
        if known and directory:
            _visit(store, f"{name}/", arrays, found)
        elif known or (is_member(name, arrays) and not directory):
            found.members.append(name)
        elif _LEFTOVER.fullmatch(entry.name):
            found.leftovers.append(name)
        else:
            found.strangers.append(f"{name}/" if directory else name)
