"""A packed store back in a folder. The archive is a stranger's: nothing of it is believed before it is checked."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from analyze.load import open_store
from analyze.sharing.entries import check_free_space, check_target
from analyze.sharing.pack import Progress
from capture.schema import OutliersError
from capture.store import CHECKSUMS, flaw, sync_folder

_BLOCK: Final = 2**20
_ENCRYPTED: Final = 0x1
_SLACK: Final = 4096  # bytes of file system a file, beside its content


def unpack(archive: Path | str, out: Path | str, *, overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Unpack a store into a folder, which appears only when every chunk of it has been read back.

    Parameters
    ----------
    archive : file that `pack` made
    out : folder to make
    overwrite : replace an existing store
    progress : is called with (sequences read back, sequences in all)

    Returns
    -------
    path of the folder

    Raises
    ------
    OutliersError
        The file is missing or no archive of a store, has entries that a store has not (names that lead elsewhere,
        links, compression, encryption), is damaged, the folder exists, or the disk has no room for it.
    """
    archive, out = Path(archive), Path(out)
    check_target(out, store=True, overwrite=overwrite)
    if not archive.is_file():
        raise OutliersError(
            f"no file at {archive}; check the path, or make one with: outliers pack STORE --out {archive}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with zipfile.ZipFile(archive) as opened:
                found = checked_entries(opened, archive, archive.stat().st_size)
                check_free_space(out, sum(info.file_size + _SLACK for info in found))
                draft.mkdir()
                for info in found:
                    _extract(opened, info, draft)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise OutliersError(f"{archive} is no whole ZIP file ({error}); get another copy of it") from error
        _check_store(draft, archive, progress)
        for folder, _, _ in os.walk(draft):
            sync_folder(Path(folder))
        _take_place(draft, out, overwrite=overwrite)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(out.absolute().parent)
    return out


def checked_entries(opened: zipfile.ZipFile, archive: Path | str, size: int) -> list[zipfile.ZipInfo]:
    """Entries of an archive that are plain files inside it, none twice, none larger than the archive is.

    Parameters
    ----------
    opened : the archive
    archive : its name, for error messages
    size : bytes of the archive

    Raises
    ------
    OutliersError
        An entry that no store has, or no zarr.json at the root.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for info in opened.infolist():
        name = info.orig_filename
        reason = _name_flaw(name) or _entry_flaw(info)
        # File systems that do not tell case or accents apart would write one file over the other.
        key = unicodedata.normalize("NFC", name.rstrip("/")).casefold()
        if reason is None and not info.is_dir() and key in found:
            reason = "stands there twice"
        if reason is not None:
            raise OutliersError(f"{archive}: entry {name!r} {reason}; expected a file made by outliers pack")
        folders.update(parent.as_posix() for parent in PurePosixPath(key).parents)
        if not info.is_dir():
            found[key] = info
    if both := folders & set(found):
        raise OutliersError(f"{archive}: {min(both)!r} is a file and a folder; expected a file made by outliers pack")
    for needed in ("zarr.json", CHECKSUMS):
        if needed.casefold() not in found or found[needed.casefold()].filename != needed:
            raise OutliersError(f"{archive} has no {needed} at its root; expected a file made by outliers pack")
    # Stored entries cannot grow, unless several of them name the same bytes.
    if sum(info.file_size for info in found.values()) > size:
        raise OutliersError(
            f"{archive}: entries claim more bytes than the file has; expected one made by outliers pack"
        )
    return list(found.values())


def _name_flaw(name: str) -> str | None:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if not all(parts) or "." in parts or "\\" in name or ":" in name or not name.isprintable():
        return "has a name that no store has"
    return None


def _entry_flaw(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or no plain file"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed"
    if info.is_dir() and info.file_size:
        return "is a folder with content"
    return None


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, draft: Path) -> None:
    target = draft / info.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(info) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
        file.flush()
        os.fsync(file.fileno())


def _check_store(draft: Path, archive: Path, progress: Progress | None) -> None:
    try:
        open_store(draft)
        wrong = flaw(draft, progress=progress)
    except OutliersError as error:
        raise OutliersError(str(error).replace(str(draft), str(archive))) from error
    if wrong is not None:
        raise OutliersError(f"{archive} {wrong}; nothing was unpacked, get another copy of it")


def _take_place(draft: Path, out: Path, *, overwrite: bool) -> None:
    check_target(out, store=True, overwrite=overwrite)
    if not out.exists():
        os.rename(draft, out)
        return
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.replaced.partial")
    os.rename(out, aside)
    try:
        os.rename(draft, out)
    except BaseException:
        os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
