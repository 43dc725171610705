"""The files of a store on their way: those of a folder, metadata first, and those that an archive may have."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from analyze.answers.records import is_record
from analyze.types import Progress
from capture.errors import OutliersError
from capture.store.files import folded_name, name_flaw
from capture.store.location import Folder
from capture.store.members import contents
from capture.store.metadata import read_metadata
from capture.store.replace import check_replaceable
from capture.store.schema import CHECKSUMS, RAW_VARIABLES, RECORDS
from capture.store.verify import flaw

_NAMED: Final = 5


@dataclass(frozen=True)
class Entry:
    """One file of a store.

    Parameters
    ----------
    name : path inside the store, with `/`
    source : the file on disk, or its content
    size : bytes
    """

    name: str
    source: Path | bytes
    size: int

    def open(self) -> BinaryIO:
        """The content, to be read."""
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def entries(store: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """The files of a store, by its format, and what else lies in its folder.

    Parameters
    ----------
    store : folder

    Returns
    -------
    files : root metadata, checksums, the metadata of arrays, small arrays, raw activations; each by name
    left out : names of what is no file of the store; a folder has `/` at its end

    Raises
    ------
    OutliersError
        A link in place of a file, or something else that is no plain file: following it might hand on what is not of
        the store. A name that an archive may not have, or two that some file systems take for one. A store without its
        list of checksums.
    """
    inside = contents(store, read_metadata(Folder(store)).arrays)
    found: dict[str, Entry] = {}
    for name in inside.members:
        path = store / name
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OutliersError(f"{path} is a link or no plain file; expected a store of plain files, copy it there")
        if name.partition("/")[0] in RECORDS and not is_record(path):
            inside.strangers.append(name)
            continue
        reason = name_flaw(name)
        if reason is None and folded_name(name) in found:
            reason = "differs from another by case or accents only"
        if reason is not None:
            raise OutliersError(f"{store}: file {name!r} {reason}; move it out of the store")
        found[folded_name(name)] = Entry(name, path, status.st_size)
    for needed in ("zarr.json", CHECKSUMS):
        if folded_name(needed) not in found:
            raise OutliersError(f"{store} has no {needed}, by which a store is checked; restore it from a copy")
    return sorted(found.values(), key=lambda entry: (_rank(entry.name), entry.name)), tuple(sorted(inside.strangers))


def left_out_line(names: Sequence[str]) -> str:
    """What is left out, for a reader."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"left out, since it is no file of the store: {', '.join(names[:_NAMED])}{more}"


def _rank(name: str) -> int:
    if name in ("zarr.json", CHECKSUMS):
        return ("zarr.json", CHECKSUMS).index(name)
    if name.endswith("/zarr.json"):
        return 2
    return 4 if name.partition("/")[0] in RAW_VARIABLES["both"] else 3


def check_target(target: Path, *, store: bool, overwrite: bool) -> None:
    """Refuse a place where something stands that may not be replaced.

    Parameters
    ----------
    target : file or folder to write
    store : whether it is the folder of a store; else a file
    overwrite : whether something of the same kind may be replaced

    Raises
    ------
    OutliersError
        Something is there; with `overwrite`, something of another kind, or in a store's folder what is not the store's.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutliersError(f"{target} exists already; choose another --out, or pass --overwrite to replace it")
    if target.is_symlink() or not ((target / "zarr.json").is_file() if store else target.is_file()):
        kind = "store" if store else "file"
        raise OutliersError(f"{target} exists and is no {kind}, so --overwrite leaves it; choose another --out")
    if store:
        check_replaceable(target)


def check_sound(store: Path, progress: Progress | None) -> None:
    """Refuse to hand on a store that is unfinished or damaged, after reading every chunk of it back.

    Raises
    ------
    OutliersError
        It is one of these.
    """
    wrong = flaw(store, progress=progress)
    if wrong is not None:
        raise OutliersError(
            f"{store} {wrong}; mend it first: the same outliers capture goes on where it stopped, "
            "and outliers verify says what to do about damage"
        )
