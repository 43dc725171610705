"""Where the bytes of a store are: what a reader asks of a folder, of an archive or of a server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capture.errors import advice
from capture.store.files import open_plain
from capture.store.schema import VARIABLES

Range = tuple[str, int, int]

URLS = ("http:/", "https:/", "s3:/", "hf:/")
"""How a path begins that was a URL: it has lost a slash."""


class Location(Protocol):
    """Bytes of a store by key, such as `norm_input/c.0.0.0.0.0`. `str` of it is what the user called it.

    What is not there is None, or `FileNotFoundError` where a part of it is asked for. What is shorter than expected
    raises `ValueError`. A server or archive that fails raises `OutliersError` in one line.
    """

    @property
    def folder(self) -> Path | None:
        """Folder of the store on this machine, where what is computed can be kept beside it; None for any other."""

    @property
    def remote(self) -> bool:
        """Whether every request costs a journey, so that many should travel together."""

    def absent(self) -> str:
        """In one line, that no store is here, and what to do."""

    def read(self, keys: Sequence[str], limit: int) -> list[bytes | None]:
        """Whole files, each of at most `limit` bytes, else ValueError; None for one that is not there."""

    def tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes, int] | None]:
        """Last `length` bytes of files, or all of a shorter one, each with the size of the file."""

    def ranges(self, requests: Sequence[Range]) -> list[bytes]:
        """Parts of files, each a key, an offset and a length; ValueError where a file ends before its part does."""

    def size(self) -> int | None:
        """Size of everything that is here; None where that takes many questions."""

    def root_mark(self) -> str | None:
        """What tells another store in this place, at the cost of no journey; None where it takes one."""

    def fingerprint(self) -> str | None:
        """Digest of what tells this content from any other at little cost; None where nothing tells it for sure."""


@dataclass(frozen=True)
class Folder:
    """A store in a folder of this machine.

    Links are followed: reading through one shows a user what that user could read anyway.

    Parameters
    ----------
    path : of the folder
    """

    path: Path

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def folder(self) -> Path | None:
        """The folder."""
        return self.path

    @property
    def remote(self) -> bool:
        """No."""
        return False

    def absent(self) -> str:
        """In one line, that no store is here, and what to do."""
        if str(self.path).startswith(URLS):
            return f"{self.path} is a URL, and this needs a store in a folder of this machine; download it first"
        if self.path.name.lower().endswith(".zip") and self.path.is_file():
            command = advice("unpack", self.path, "--out", "STORE")
            return f"{self.path} is an archive, and this needs a folder; unpack it with: {command}"
        if self.path.exists():
            return f"{self.path} is no Zarr v3 store (it has no zarr.json); expected a store made by outliers capture"
        made = advice("capture", "MODEL", "--out", self.path)
        return f"no store at {self.path}; check the path, or make one with: {made}"

    def read(self, keys: Sequence[str], limit: int) -> list[bytes | None]:
        """Whole files; None for one that is not there."""
        return [self._read(key, limit) for key in keys]

    def _read(self, key: str, limit: int) -> bytes | None:
        file = self.path / key
        if not file.is_file():  # nor a pipe or a device, which would be read for ever
            return None
        with open_plain(file) as opened:
            data = opened.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{key} is larger than the {limit:,} bytes that it can have")
        return data

    def tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes, int] | None]:
        """Last bytes of files, each with the size of the file; None for one that is not there."""
        return [self._tail(key, length) for key in keys]

    def _tail(self, key: str, length: int) -> tuple[bytes, int] | None:
        file = self.path / key
        if not file.is_file():
            return None
        with open_plain(file) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - length))
            return opened.read(length), size

    def ranges(self, requests: Sequence[Range]) -> list[bytes]:
        """Parts of files."""
        return [self._range(*request) for request in requests]

    def _range(self, key: str, offset: int, length: int) -> bytes:
        with open_plain(self.path / key) as opened:
            if offset + length > os.fstat(opened.fileno()).st_size:  # before memory of that length is asked for
                raise ValueError(f"file {key} is cut short")
            opened.seek(offset)
            return opened.read(length)

    def size(self) -> int:
        """Size of everything that is here."""
        total = 0
        for folder, _, files in os.walk(self.path):
            for name in files:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # a capture that goes on renames its files
                    continue
        return total

    def mark(self, key: str) -> str:
        """Size and time of a file."""
        status = (self.path / key).stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def root_mark(self) -> str:
        """Size and time of the metadata of the group, which never change; empty where they are gone."""
        try:
            return self.mark("zarr.json")
        except OSError:
            return ""

    def fingerprint(self) -> str:
        """Digest of the metadata, and of name, size and time of each file of the arrays."""
        digest = hashlib.sha256((self.path / "zarr.json").read_bytes())
        for name in sorted(VARIABLES):
            folder = self.path / name
            if folder.is_dir():
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                    status = entry.stat()
                    digest.update(f"{name}/{entry.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]
