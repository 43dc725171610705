"""Files that appear whole or not at all, their names and digests, and room for them on the disk."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from capture.errors import OutliersError
from capture.store.drafts import claim, sweep
from capture.store.planes import Piece

_MOST_PIECES = 1024
"""Pieces that POSIX systems write at once."""


def name_flaw(name: str) -> str | None:
    """Why a file of a store may not have this name; None where it may."""
    parts = name.removesuffix("/").split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the folder"
    if not all(parts) or "." in parts or "\\" in name or ":" in name or not name.isprintable():
        return "has a name that no store has"
    return None


def folded_name(name: str) -> str:
    """What is the same for names that a file system may not tell apart by case or accents."""
    return unicodedata.normalize("NFC", name).casefold()


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_free_space(path: Path, needed: int, what: str, instead: str) -> None:
    """Refuse what the disk has no room for.

    Parameters
    ----------
    path : what will be written
    needed : bytes
    what, instead : what needs them, and what would need fewer, in words

    Raises
    ------
    OutliersError
        The file system of `path` has fewer bytes free than `needed`.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutliersError(
            f"{what} needs about {needed / 1e6:,.1f} MB and the disk of {path} has {free / 1e6:,.1f} MB free; "
            f"free some room, or {instead}"
        )


def open_plain(file: Path) -> BinaryIO:
    """Open a file that may be a stranger's for reading: a pipe would be waited for, and a device has no end.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is no plain file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file.parent.name}/{file.name} is no plain file")
    return os.fdopen(descriptor, "rb")


def read_plain(file: Path, limit: int) -> bytes:
    """Content of a plain file of at most `limit` bytes; else as `open_plain`, and ValueError where it is larger."""
    with open_plain(file) as opened:
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{file.parent.name}/{file.name} is larger than the {limit:,} bytes that it can have")
    return data


def refuse_special(folder: Path, limit: int) -> None:
    """Refuse a folder of an array whose files another library is to read, where one is no plain file, or too large.

    Raises
    ------
    ValueError
        One is.
    """
    for entry in os.scandir(folder):
        if not entry.is_file():
            raise ValueError(f"{folder.name}/{entry.name} is no plain file")
        if entry.stat().st_size > limit:
            raise ValueError(f"{folder.name}/{entry.name} is larger than the {limit:,} bytes that it can have")


class AtomicFile:
    """A file that appears under its name only when it is whole and on the disk.

    Use as a context manager; leaving the block by an exception removes what was written.

    Parameters
    ----------
    path : its name
    cached : leave the bytes in the system's page cache. A capture writes more than it could hold, reads nothing of it
        again, and runs faster where the pages of one sequence serve the next.
    """

    def __init__(self, path: Path, *, cached: bool = True) -> None:
        self._path = path
        self._cached = cached
        self._partial, descriptor = claim(path, folder=False)
        self.file: BinaryIO = os.fdopen(descriptor, "r+b")
        with contextlib.suppress(FileNotFoundError):
            os.chmod(self._partial, stat.S_IMODE(path.stat().st_mode))

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.file.write(data)

    def write_at(self, offset: int, pieces: Sequence[Piece]) -> None:
        """Put bytes at their place, whatever other threads put elsewhere meanwhile; not to be mixed with `write`.

        What is not to stay in the page cache begins its way to the disk at once, beside what is computed.
        """
        place = offset
        for begin in range(0, len(pieces), _MOST_PIECES):
            place += _write_pieces(self.file.fileno(), place, pieces[begin : begin + _MOST_PIECES])
        self._drop(offset, place - offset)

    def _drop(self, offset: int, length: int) -> None:
        """Have the system write a range of the file and forget it; a length of 0 is up to the end."""
        if not self._cached and hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self.file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make the bytes durable, then give the file its name."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self._drop(0, 0)
            try:
                os.replace(self._partial, self._path)
            except FileNotFoundError as error:
                raise OutliersError(
                    f"another capture writes {self._path} too and took its unfinished file away; let one of them "
                    "finish, or give each its own --part"
                ) from error
        finally:
            self.discard()
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove what was written and has not its name yet."""
        with contextlib.suppress(OSError):  # what a full disk did not take
            self.file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def _write_pieces(descriptor: int, offset: int, pieces: Sequence[Piece]) -> int:
    """Write bytes to a place of a file; how many they are."""
    whole = sum(map(len, pieces))
    written = os.pwritev(descriptor, pieces, offset) if hasattr(os, "pwritev") else 0
    if written < whole:  # a disk that is nearly full takes a part, until it says so; macOS has no pwritev
        rest = memoryview(b"".join(pieces))
        while written < whole:
            written += os.pwrite(descriptor, rest[written:], offset + written)
    return whole


def write_file(path: Path, content: bytes) -> None:
    """Give a file new content, all of it or none of it: where writing fails, what stood there stays.

    Raises
    ------
    OutliersError
        It cannot be written.
    """
    try:
        if path.is_relative_to("/dev") or (path.exists() and not path.is_file()):
            path.write_bytes(content)  # a pipe or a terminal takes the bytes as they come
            return
        target = Path(os.path.realpath(path))  # a link stays one
        sweep(target.parent, target.name)
        with AtomicFile(target) as file:
            file.write(content)
    except OSError as error:
        raise OutliersError(f"cannot write {path}: {error.strerror or error}; choose another file") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path, name: str) -> None:
    """Remove what other writers of the file `name` of a store have not finished, killed or not: it has one writer."""
    for leftover in folder.glob(f".{glob.escape(name)}.*.partial"):
        leftover.unlink(missing_ok=True)
