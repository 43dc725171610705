"""A store in one file: a ZIP archive, entries stored as they are, that Zarr readers open in place."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from analyze.sharing.attributes import as_json, consolidated, content, relisted, root_of, without_paths
from analyze.sharing.files import Entry, check_sound, check_target, entries, left_out_line
from analyze.types import Progress
from capture.errors import OutliersError
from capture.store.drafts import draft_folder
from capture.store.files import AtomicFile, check_free_space
from capture.store.group import open_group
from capture.store.output import output_folder, output_path
from capture.store.paths import user_path
from capture.store.rounding import write_rounded
from capture.store.schema import MANTISSA, RAW_VARIABLES, ROUNDED, SIGNIFICANT, VARIABLES
from capture.store.schema import mantissa_bits as bits_of
from capture.store.write import StoreWriter

SUFFIX: Final = ".zarr.zip"
# What is not of the store must not reach the archive: the earliest time that ZIP knows, and plain permissions.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644
_UNIX: Final = 3
_BLOCK: Final = 2**20
_HEADERS: Final = 256  # bytes of ZIP headers an entry, at most, beside twice its name


def pack(
    store: Path | str,
    out: Path | str,
    *,
    peaks_only: bool = False,
    mantissa_bits: int | None = None,
    overwrite: bool = False,
    keep_paths: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Pack a store into one file, after reading every chunk of it back.

    The same store gives the same bytes, whatever its place, times and permissions. What is no file of the store is left
    out, and of paths in its attributes all but the last part.

    Parameters
    ----------
    store : folder of a whole store
    out : file to write, ending in `.zarr.zip`
    peaks_only : leave out the raw activations; the packed store has the attributes `raw` = `none` and `packed`
    mantissa_bits : round the raw activations to so many; the packed store has the attribute `rounded`, and its peaks
        stay exact
    overwrite : replace an existing file
    keep_paths : leave the paths in the attributes as they are
    progress : is called with (sequences read back, sequences in all)
    report : is told in one line what is left out

    Returns
    -------
    path of the file

    Raises
    ------
    OutliersError
        The store is missing, damaged or unfinished, cannot be rounded so, the file exists, or the disk has no room.
    """
    store, out = user_path(store), output_path(out)
    if not out.name.endswith(SUFFIX):
        raise OutliersError(f"{out} does not end in {SUFFIX}; expected a name such as {out.name.split('.')[0]}{SUFFIX}")
    if store.is_file():
        raise OutliersError(f"{store} is a file; expected the folder of a store, as outliers unpack makes it")
    open_group(store)
    if out.resolve().is_relative_to(store.resolve()):
        raise OutliersError(f"{out} lies inside the store; choose another --out")
    check_target(out, store=False, overwrite=overwrite)
    output_folder(out.parent)
    found, left_out = entries(store)
    if peaks_only and mantissa_bits is not None:
        raise OutliersError("--peaks-only leaves nothing for --mantissa-bits to round; give one of them")
    if mantissa_bits is not None:
        check_mantissa_bits(store, mantissa_bits)
    if peaks_only:
        found = without_raw(found)
    needed = sum(entry.size + 2 * len(entry.name) + _HEADERS for entry in found)
    # Rounded files lie beside the archive first.
    check_free_space(out, needed if mantissa_bits is None else 2 * needed, "the archive", "choose another --out")
    check_sound(store, progress)
    if left_out and report is not None:
        report(left_out_line(left_out))
    out.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(out) as scratch, AtomicFile(out, cached=False) as archive:
        if mantissa_bits is not None:
            found = with_rounded(found, store, mantissa_bits, scratch)
        if not keep_paths:
            found = without_paths(found)
        _write(archive.file, found)
        check_target(out, store=False, overwrite=overwrite)
    return out


def without_raw(found: list[Entry]) -> list[Entry]:
    """The files of the same store without its raw activations, which says so in its attributes.

    Parameters
    ----------
    found : files of a whole store, from `entries`
    """
    root, before = root_of(found)
    raw = root["attributes"]["raw"]
    dropped = RAW_VARIABLES[raw]
    if not dropped:
        return found
    root["attributes"]["raw"] = "none"
    root["attributes"]["packed"] = {"left_out": list(dropped), "raw_before": raw, "sha256sums_before": before}
    for name in dropped:
        consolidated(root).pop(name, None)
    kept = [entry for entry in found if entry.name.partition("/")[0] not in dropped]
    return relisted(kept, {"zarr.json": as_json(root)})


def with_rounded(found: list[Entry], store: Path, bits: int, scratch: Path) -> list[Entry]:
    """The files of the same store with its raw activations rounded, which says so in its attributes.

    Parameters
    ----------
    found : files of a whole store, from `entries`
    store : folder of it
    bits : mantissa bits to keep
    scratch : folder for the rounded files
    """
    root, before = root_of(found)
    variables = RAW_VARIABLES[root["attributes"]["raw"]]
    root["attributes"][ROUNDED] = {
        "mantissa_bits": bits,
        "variables": list(variables),
        "sha256sums_before": before,
    }
    said = f"rounded to {bits} mantissa bits"
    by_name = {entry.name: entry for entry in found}
    changed: dict[str, Path | bytes] = dict(write_rounded(StoreWriter(store), scratch, bits))
    for name in variables:
        array = json.loads(content(by_name[f"{name}/zarr.json"]))
        for described in (array, consolidated(root).get(name, array)):
            described["attributes"]["long_name"] = f"{VARIABLES[name].description}, {said}"
        changed[f"{name}/zarr.json"] = as_json(array)
    return relisted(found, {**changed, "zarr.json": as_json(root)})


def check_mantissa_bits(store: Path, bits: int) -> None:
    """Refuse rounding that changes nothing, or that no check could follow.

    Raises
    ------
    OutliersError
        Bits out of range, a store without activations, or one that is rounded already.
    """
    attributes = dict(open_group(store).attrs)
    most = SIGNIFICANT.get(str(attributes.get("compute_dtype")), MANTISSA)
    if not 1 <= bits < most:
        raise OutliersError(
            f"--mantissa-bits is {bits}, and {store} was computed in {attributes.get('compute_dtype')} with {most}; "
            f"expected 1 to {most - 1}"
        )
    if attributes["raw"] == "none":
        raise OutliersError(f"{store} keeps no activations that could be rounded; leave --mantissa-bits out")
    if bits_of(attributes) is not None:
        raise OutliersError(f"{store} is rounded already, and rounding twice is not rounding once; pack the original")


def _write(file: Any, found: list[Entry]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for entry in found:
            info = zipfile.ZipInfo(entry.name, _TIME)
            info.create_system = _UNIX
            info.external_attr = _MODE << 16
            info.file_size = entry.size  # says beforehand whether the entry needs the 64-bit fields
            with archive.open(info, "w") as target, entry.open() as source:
                shutil.copyfileobj(source, target, _BLOCK)
