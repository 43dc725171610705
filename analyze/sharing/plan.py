"""What a push would send and where to, before anything is sent: names, limits, what is there already."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analyze.sharing.card import Card
from analyze.sharing.files import Entry
from capture.errors import OutliersError
from capture.store.schema import CHECKSUMS, COORDINATES, RECORDS, VARIABLES, VOCABULARY

HUB: Final = "hf://datasets/"
BUCKET: Final = "s3://"
MOST_FILES: Final = 10_000
"""Files that one folder of the Hub may hold."""
LARGEST_FILE: Final = 50 * 10**9
"""Bytes of one file on the Hub."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BLOCK: Final = 2**20


@dataclass(frozen=True)
class Uploaded:
    """A file that is at the target already.

    Parameters
    ----------
    size : bytes
    algorithm, digest : `sha256`, `md5`, or `git` (SHA-1 of a git blob), and the hexadecimal digest
    """

    size: int
    algorithm: str
    digest: str


@dataclass(frozen=True)
class Push:
    """What is uploaded.

    Parameters
    ----------
    store : folder of the store
    url : of the store at the target
    files : of the store, in the order of the upload
    left_out : what lies in its folder and is no file of the store
    card : page of the Hub; None for a bucket
    private : whether a new dataset is private
    """

    store: Path
    url: str
    files: tuple[Entry, ...]
    left_out: tuple[str, ...]
    card: Card | None
    private: bool

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the files."""
        return sum(file.size for file in self.files)

    @property
    def last(self) -> tuple[Entry, ...]:
        """Files without which nobody takes what is there for a whole store."""
        return tuple(file for file in self.files if is_last(file.name))


def hub_url(target: str, store: Path, name: str | None) -> str:
    """URL of the store in a dataset.

    Raises
    ------
    OutliersError
        The target names no dataset, or no folder can have the store's name.
    """
    parts = target.removeprefix(HUB).rstrip("/").split("/")
    if len(parts) not in (2, 3) or not all(_NAME.fullmatch(part) for part in parts[:2]):
        raise OutliersError(f"{target} names no dataset; expected {HUB}ORG/NAME")
    if len(parts) == 3 and name not in (None, parts[2]):
        raise OutliersError(f"{target} names the store {parts[2]} and --name {name}; leave one of them out")
    chosen = parts[2] if len(parts) == 3 else store.resolve().name if name is None else name
    if not _NAME.fullmatch(chosen) or not chosen.endswith(".zarr"):
        raise OutliersError(
            f"{chosen!r} is no name for a shared store; expected letters, digits, . _ - and .zarr at the end; "
            "pass --name"
        )
    return f"{HUB}{parts[0]}/{parts[1]}/{chosen}"


def bucket_url(target: str) -> str:
    """URL of the store in a bucket.

    Raises
    ------
    OutliersError
        The target names no bucket, or nothing that ends in .zarr.
    """
    bucket, *parts = target.removeprefix(BUCKET).rstrip("/").split("/")
    if not bucket or not parts or not all(_NAME.fullmatch(part) for part in parts) or not parts[-1].endswith(".zarr"):
        raise OutliersError(f"{target} names no store in a bucket; expected {BUCKET}BUCKET/PREFIX/NAME.zarr")
    return f"{BUCKET}{bucket}/{'/'.join(parts)}"


def check_hub_limits(files: Iterable[Entry]) -> None:
    """Refuse what the Hub would refuse after hours.

    Raises
    ------
    OutliersError
        A folder with too many files, or a file that is too large.
    """
    files = tuple(files)
    folder, count = Counter(file.name.rpartition("/")[0] for file in files).most_common(1)[0]
    if count >= MOST_FILES:
        raise OutliersError(
            f"folder {folder} has {count:,} files and the Hub takes fewer than {MOST_FILES:,}; "
            "capture fewer sequences in one store, or share it packed: outliers pack"
        )
    largest = max(files, key=lambda file: file.size)
    if largest.size > LARGEST_FILE:
        raise OutliersError(
            f"{largest.name} has {largest.size / 1e9:.1f} GB and the Hub takes {LARGEST_FILE / 1e9:.0f} GB a file; "
            "capture with a shorter --length, or share the peaks: outliers pack --peaks-only"
        )


def is_last(name: str) -> bool:
    """Whether a file of a store is uploaded after all others."""
    return name in ("zarr.json", CHECKSUMS) or name.startswith("done/")


def unlike(url: str, files: Iterable[Entry], there: Mapping[str, Uploaded]) -> list[str]:
    """Names at the target that the store has not, or has with another content.

    Parameters
    ----------
    url : of the target, for error messages
    files : of the store
    there : what the target holds, by name

    Raises
    ------
    OutliersError
        Something is there that is no file of any store, so that nothing at that place may be replaced.
    """
    own = {*VARIABLES, *COORDINATES, VOCABULARY, *RECORDS, "zarr.json", CHECKSUMS}
    by_name = {file.name: file for file in files}
    for name in sorted(set(there) - set(by_name)):
        if name.partition("/")[0] not in own:
            raise OutliersError(f"{url} holds {name}, which is no file of a store; choose another target")
    return [name for name, remote in there.items() if name not in by_name or not _same(by_name[name], remote)]


def _same(file: Entry, remote: Uploaded) -> bool:
    if file.size != remote.size:
        return False
    digest = hashlib.new("sha1" if remote.algorithm == "git" else remote.algorithm, usedforsecurity=False)
    if remote.algorithm == "git":
        digest.update(f"blob {file.size}\0".encode())
    with file.open() as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest() == remote.digest
