"""A store in one file: a ZIP archive, entries stored as they are, that Zarr readers open in place."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from analyze.sharing.entries import Entry, check_free_space, check_target, entries
from capture.schema import RAW_VARIABLES, OutliersError
from capture.store import CHECKSUMS, flaw, open_group, sync_folder

SUFFIX: Final = ".zarr.zip"
# What is not of the store must not reach the archive: the earliest time that ZIP knows, and plain permissions.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644
_UNIX: Final = 3
_BLOCK: Final = 2**20
_HEADERS: Final = 256  # bytes of ZIP headers an entry, at most, beside twice its name

Progress = Callable[[int, int], None]


def pack(
    store: Path | str,
    out: Path | str,
    *,
    peaks_only: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Pack a store into one file, after reading every chunk of it back.

    The same store gives the same bytes, whatever its place, times and permissions. Caches of views are left out.

    Parameters
    ----------
    store : folder of a whole store
    out : file to write, ending in `.zarr.zip`
    peaks_only : leave out the raw activations; the packed store has the attributes `raw` = `none` and `packed`
    overwrite : replace an existing file
    progress : is called with (sequences read back, sequences in all)

    Returns
    -------
    path of the file

    Raises
    ------
    OutliersError
        The store is missing, damaged or unfinished, the file exists, or the disk has no room for it.
    """
    store, out = Path(store), Path(out)
    if not out.name.endswith(SUFFIX):
        raise OutliersError(f"{out} does not end in {SUFFIX}; expected a name such as {out.name.split('.')[0]}{SUFFIX}")
    if store.is_file():
        raise OutliersError(f"{store} is a file; expected the folder of a store, as outliers unpack makes it")
    open_group(store)
    if out.resolve().is_relative_to(store.resolve()):
        raise OutliersError(f"{out} lies inside the store; choose another --out")
    check_target(out, store=False, overwrite=overwrite)
    found = entries(store)
    if peaks_only:
        found = without_raw(found)
    check_free_space(out, sum(entry.size + 2 * len(entry.name) + _HEADERS for entry in found))
    wrong = flaw(store, progress=progress)
    if wrong is not None:
        raise OutliersError(f"{store} {wrong}; mend it first, outliers verify says how")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        with draft.open("xb") as file:
            _write(file, found)
            file.flush()
            os.fsync(file.fileno())
        check_target(out, store=False, overwrite=overwrite)
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(out.absolute().parent)
    return out


def without_raw(found: list[Entry]) -> list[Entry]:
    """The files of the same store without its raw activations, which says so in its attributes.

    Parameters
    ----------
    found : files of a whole store, from `entries`
    """
    by_name = {entry.name: entry for entry in found}
    root = json.loads(content(by_name["zarr.json"]))
    raw = root["attributes"]["raw"]
    dropped = RAW_VARIABLES[raw]
    if not dropped:
        return found
    listing = content(by_name[CHECKSUMS])
    root["attributes"]["raw"] = "none"
    root["attributes"]["packed"] = {
        "left_out": list(dropped),
        "raw_before": raw,
        "sha256sums_before": hashlib.sha256(listing).hexdigest(),
    }
    consolidated: dict[str, Any] = root.get("consolidated_metadata") or {"metadata": {}}
    for name in dropped:
        consolidated["metadata"].pop(name, None)
    kept = [entry for entry in found if entry.name.partition("/")[0] not in dropped]
    metadata = json.dumps(root, indent=2).encode()
    lines = []
    for line in listing.decode().splitlines():
        name = line.partition("  ")[2]
        if name.partition("/")[0] in dropped:
            continue
        lines.append(f"{hashlib.sha256(metadata).hexdigest()}  {name}\n" if name == "zarr.json" else f"{line}\n")
    rewritten = {"zarr.json": metadata, CHECKSUMS: "".join(lines).encode()}
    return [
        Entry(entry.name, rewritten[entry.name], len(rewritten[entry.name])) if entry.name in rewritten else entry
        for entry in kept
    ]


def content(entry: Entry) -> bytes:
    """Bytes of one small file."""
    return entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes()


def _write(file: Any, found: list[Entry]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for entry in found:
            info = zipfile.ZipInfo(entry.name, _TIME)
            info.create_system = _UNIX
            info.external_attr = _MODE << 16
            info.file_size = entry.size  # says beforehand whether the entry needs the 64-bit fields
            with archive.open(info, "w") as target:
                if isinstance(entry.source, bytes):
                    target.write(entry.source)
                else:
                    with entry.source.open("rb") as source:
                        shutil.copyfileobj(source, target, _BLOCK)
