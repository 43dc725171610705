"""A packed store back in a folder. The archive is a stranger's: nothing of it is believed before it is checked."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Final

from analyze.reading.archive import Archive, checked_entries
from analyze.reading.open import open_store
from analyze.sharing.files import check_target
from analyze.types import Progress
from capture.errors import OutliersError, advice
from capture.store.drafts import draft_folder
from capture.store.files import check_free_space, sync_folder
from capture.store.location import URLS, Folder
from capture.store.output import output_folder, output_path
from capture.store.paths import user_path
from capture.store.replace import settle, take_place
from capture.store.verify import flaw

_BLOCK: Final = 2**20
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
    archive, out = user_path(archive), output_path(out)
    check_target(out, store=True, overwrite=overwrite)
    output_folder(out)
    if archive.is_dir():
        raise OutliersError(f"{archive} is a folder; expected a file made by outliers pack")
    if str(archive).startswith(URLS):
        raise OutliersError(f"{archive} is a URL, and this needs a file on this machine; download it first")
    if not archive.is_file():
        raise OutliersError(
            f"no file at {archive}; check the path, or make one with: {advice('pack', 'STORE', '--out', archive)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    settle(out)
    Archive(Folder(archive.parent), archive.name)  # its directory is bounded before all of it is parsed again
    with draft_folder(out) as draft:
        try:
            with zipfile.ZipFile(archive) as opened:
                found = checked_entries(opened, archive, archive.stat().st_size)
                needed = sum(info.file_size + _SLACK for info in found)
                check_free_space(out, needed, "the store", "choose another --out")
                for info in found:
                    _extract(opened, info, draft)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
            raise OutliersError(f"{archive} is no whole ZIP file ({error}); get another copy of it") from error
        _check_store(draft, archive, progress)
        for folder, _, _ in os.walk(draft):
            sync_folder(Path(folder))
        check_target(out, store=True, overwrite=overwrite)
        take_place(draft, out)
    return out


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
