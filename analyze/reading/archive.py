"""A store in a ZIP archive, read in place. The archive is a stranger's: its entries are checked before any is read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from capture.errors import OutliersError, advice
from capture.store.files import folded_name, name_flaw
from capture.store.location import Folder, Location, Range
from capture.store.schema import CHECKSUMS

if TYPE_CHECKING:
    from analyze.reading.server import Server

_HEADER: Final = struct.Struct("<4s5H3I2H")
_MAGIC: Final = b"PK\x03\x04"
_END: Final = 2**16
_LARGEST_DIRECTORY: Final = 2**28
_MOST_ENTRIES: Final = 2**19
_ENTRY: Final = b"PK\x01\x02"


class Archive:
    """The entries of an archive, which stand in it as they are.

    Parameters
    ----------
    around : where the archive is: a folder or a server
    file : its name there

    Raises
    ------
    OutliersError
        It is missing, no archive of a store, cut short, or has entries that a store has not.
    """

    def __init__(self, around: Folder | Server, file: str) -> None:
        self._around, self._file = around, file
        try:
            tail = around.tails([file], _END)[0]
        except ValueError as error:
            raise OutliersError(f"{self} is no whole ZIP file ({error}); get another copy of it") from error
        if tail is None:
            raise OutliersError(
                f"no file at {self}; check the path, or make one with: {advice('pack', 'STORE', '--out', self)}"
            )
        data, self._size = tail
        window = _Window(around, file, data, self._size)
        try:
            with zipfile.ZipFile(window) as opened:
                self._directory = opened.start_dir
                entries = checked_entries(opened, str(self), self._size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, OSError) as error:
            raise OutliersError(f"{self} is no whole ZIP file ({error}); get another copy of it") from error
        self._entries = {entry.filename: entry for entry in entries if not entry.is_dir()}
        self._starts: dict[str, int] = {}
        self._kept: dict[Range, bytes] = {}
        self._mark = hashlib.sha256(window.directory(self._directory))
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker reads the directory of the archive again."""
        return Archive, (self._around, self._file)

    def __str__(self) -> str:
        """Path or URL of the archive."""
        return f"{str(self._around).rstrip('/')}/{self._file}" if str(self._around) != "." else self._file

    @property
    def folder(self) -> None:
        """An archive is not written into."""

    @property
    def remote(self) -> bool:
        """Whether the archive is on a server."""
        return self._around.remote

    def absent(self) -> str:
        """In one line, that no store is here, and what to do."""
        return f"{self} has no zarr.json at its root; expected a file made by outliers pack"

    def read(self, keys: Sequence[str], limit: int) -> list[bytes | None]:
        """Whole entries, which must match their checksums; None for one that is not there."""
        known = [key for key in keys if key in self._entries]
        for key in known:
            if self._entries[key].file_size > limit:
                raise ValueError(f"{key} is larger than the {limit:,} bytes that it can have")
        parts = self.ranges([(key, 0, self._entries[key].file_size) for key in known])
        for key, part in zip(known, parts, strict=True):
            if zlib.crc32(part) != self._entries[key].CRC:
                raise ValueError(f"{key} does not match its checksum in the archive")
        found = dict(zip(known, parts, strict=True))
        return [found.get(key) for key in keys]

    def tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes, int] | None]:
        """Last bytes of entries, each with its size; None for one that is not there."""
        sizes = {key: self._entries[key].file_size for key in keys if key in self._entries}
        asked = [(key, max(0, size - length), min(size, length)) for key, size in sizes.items()]
        new = [request for request in asked if request not in self._kept]
        fresh = dict(zip(new, self.ranges(new), strict=True))
        found = {request[0]: fresh[request] if request in fresh else self._kept[request] for request in asked}
        if self.remote:
            self._kept.update(fresh)
        return [(found[key], sizes[key]) if key in found else None for key in keys]

    def ranges(self, requests: Sequence[Range]) -> list[bytes]:
        """Parts of entries."""
        self._find({key for key, *_ in requests})
        asked = []
        for key, offset, length in requests:
            if offset + length > self._entries[key].file_size:
                raise ValueError(f"file {key} is cut short")
            asked.append((self._file, self._starts[key] + offset, length))
        return self._around.ranges(asked)

    def _find(self, keys: set[str]) -> None:
        """Find where the bytes of entries begin: behind headers, whose length the directory does not say."""
        unknown = sorted(keys - self._starts.keys())
        offsets = [self._entries[key].header_offset for key in unknown]
        headers = self._around.ranges([(self._file, offset, _HEADER.size) for offset in offsets])
        for key, offset, header in zip(unknown, offsets, headers, strict=True):
            magic, *_, name, extra = _HEADER.unpack(header)
            start = offset + _HEADER.size + name + extra
            if magic != _MAGIC or start + self._entries[key].file_size > self._directory:
                raise ValueError(f"entry {key} is not where the archive says")
            with self._lock:
                self._starts[key] = start

    def size(self) -> int:
        """Size of the archive."""
        return self._size

    def root_mark(self) -> str | None:
        """Size and time of the archive; empty where it is gone, None where it is on a server."""
        try:
            return None if self.remote else self._around.mark(self._file)
        except OSError:
            return ""

    def fingerprint(self) -> str | None:
        """Digest of the directory, which has a checksum of each entry, and of what tells a new file of this name."""
        mark = self._around.mark(self._file)
        if mark is None:
            return None
        digest = self._mark.copy()
        digest.update(f"{self} {mark}".encode())
        return digest.hexdigest()[:32]


class _Window(io.RawIOBase):
    """An archive as the file that `zipfile` reads a directory from; more than its end is fetched only when needed."""

    def __init__(self, around: Location, file: str, tail: bytes, size: int) -> None:
        self._around, self._file, self._tail, self._size = around, file, tail, size
        self._place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if place < 0:
            raise OSError("the archive is shorter than it says")
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._place + size)
        data = self._between(self._place, stop)
        self._place += len(data)
        return data

    def directory(self, start: int) -> bytes:
        """Everything from the begin of the directory on."""
        return self._between(start, self._size)

    def _between(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        first = self._size - len(self._tail)
        if start < first:
            if self._size - start > _LARGEST_DIRECTORY:
                raise ValueError(f"its directory has over {_LARGEST_DIRECTORY:,} bytes")
            (before,) = self._around.ranges([(self._file, start, first - start)])
            self._tail, first = before + self._tail, start
            if self._tail.count(_ENTRY) > _MOST_ENTRIES:  # each costs a thousand times its bytes once it is parsed
                raise ValueError(f"its directory has over {_MOST_ENTRIES:,} entries")
        return self._tail[start - first : stop - first]


_ENCRYPTED: Final = 0x1


def checked_entries(opened: zipfile.ZipFile, archive: Path | str, size: int) -> list[zipfile.ZipInfo]:
    """Entries of an archive that are plain files inside it, none twice, none larger than the archive is.

    Parameters
    ----------
    opened : the archive
    archive : its path or URL, for error messages
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
        reason = name_flaw(name) or _entry_flaw(info)
        key = folded_name(name.rstrip("/"))
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
    if info.header_offset < 0:
        return "begins before the file does, whose first part is lost"
    return None
