"""A store on a server: read where it is, by ranges, over HTTP, from a bucket, or from the Hugging Face Hub.

obstore does the transport. It was measured beside fsspec (with aiohttp and s3fs) on what `outliers find` asks of a
server, see docs/benchmarks.md: it takes the end of a file, where the index of a shard is, by one request, where fsspec
asks for the size first; it retries by itself; and it is one wheel without dependencies.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from analyze.reading.hub import HUB_SHAPE, HubDataset, hub_dataset
from analyze.reading.transport import (
    ADVICE,
    PartlessError,
    begin,
    credentials,
    end,
    fetch,
    reason,
    silence,
    together,
    wait,
)
from capture.errors import OutliersError, one_line, without_passwords
from capture.store.location import Range
from capture.store.metadata import read_metadata
from capture.store.schema import RAW_VARIABLES, VARIABLES

_AT_ONCE: Final = 16
_TAIL: Final = 2**16
_TAILS_KEPT: Final = 1024
_GAP: Final = 2**15  # bytes that are cheaper to fetch along than to ask around
_CONNECT: Final = 10
_RETRIES: Final = 3
_LARGEST_WHOLE: Final = 2**28
"""Bytes of a file that is taken whole from a server that sends no parts of files."""

Result = TypeVar("Result")
Tail = tuple[bytes, int] | None


class Server:
    """A store behind a URL.

    Parameters
    ----------
    url : as the user gave it
    dataset : where the Hub's files are, as found by an earlier opening
    opening : name of this opening of the store, which workers in other processes share

    Raises
    ------
    OutliersError
        The URL is none of a store, the extra `remote` is not installed, or the Hub does not know the dataset.
    """

    def __init__(self, url: str, dataset: HubDataset | None = None, opening: str | None = None) -> None:
        if find_spec("obstore") is None:
            raise OutliersError(
                f"{url} is on a server, which takes the extra remote; "
                "install it with: pip install 'outlier-features[remote]'"
            )
        self.url = url.rstrip("/")
        self._opening = secrets.token_hex(8) if opening is None else opening
        self._dataset = hub_dataset(url) if dataset is None and url.startswith("hf://") else dataset
        self._store = self._connected()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._partless = False
        self._tails: dict[str, Future[Tail]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker opens the URL once, at the same commit, however many arrays it is sent."""
        return _reopened, (self.url, self._dataset, self._opening)

    def __str__(self) -> str:
        """The URL, without a password."""
        return without_passwords(self.url)

    @property
    def folder(self) -> None:
        """Nothing can be kept beside it."""

    @property
    def remote(self) -> bool:
        """Yes."""
        return True

    def _connected(self) -> Any:
        """The object of obstore that fetches."""
        from obstore.store import HTTPStore, S3Store

        seconds = silence()
        base = self.url if self._dataset is None else self._dataset.base
        client: Any = {
            "connect_timeout": timedelta(seconds=min(_CONNECT, seconds)),
            "read_timeout": timedelta(seconds=seconds),
            "timeout": timedelta(hours=1),  # a large chunk over a slow line is no fault
            "user_agent": "outlier-features",
            "allow_http": base.startswith("http://"),
        }
        retry: Any = {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=2 * seconds),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        try:
            if base.startswith("s3://"):
                endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))
                client["allow_http"] = endpoint.startswith("http://")
                return S3Store.from_url(base, client_options=client, retry_config=retry, **credentials())
            parts = urlsplit(base)
            if parts.query or parts.fragment or parts.hostname is None:
                raise ValueError("a URL without ?, # and with a host is needed")
            if self._dataset is not None:
                client["default_headers"] = dict(self._dataset.headers)
            return HTTPStore.from_url(base, client_options=client, retry_config=retry)
        except Exception as error:  # obstore raises classes of its own, one for each store
            raise OutliersError(
                f"{self} cannot be opened ({one_line(error)}); expected https://HOST/STORE.zarr, "
                f"s3://BUCKET/STORE.zarr or {HUB_SHAPE}"
            ) from error

    def absent(self) -> str:
        """In one line, that no store is here, and what to do."""
        return f"no store at {self} (404: it has no zarr.json); check the URL, which ends in the store's folder"

    def read(self, keys: Sequence[str], limit: int) -> list[bytes | None]:
        """Whole files, at once; None for one that is not there."""
        found = self._together([self._get(key, None, limit) for key in keys])
        return [None if one is None else one[0] for one in found]

    def tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes, int] | None]:
        """Last bytes of files, at once, each with its size; kept, so that what is asked for again costs nothing."""
        wanted = max(length, _TAIL)
        with self._lock:
            for key in keys:
                if key not in self._tails:
                    self._tails[key] = begin(self._get(key, {"suffix": wanted}, wanted))
            futures = [self._tails[key] for key in keys]
        try:
            found = [future.result() for future in futures]
        except BaseException as error:
            with self._lock:  # so that a later question asks again
                for key, future in zip(keys, futures, strict=True):
                    if self._tails.get(key) is future and not (future.done() and future.exception() is None):
                        del self._tails[key]
            if isinstance(error, KeyboardInterrupt):
                end(futures)
            raise
        self._forget(futures)
        return [None if tail is None else (tail[0][-length:], tail[1]) for tail in found]

    def _forget(self, used: Sequence[Future[Tail]]) -> None:
        """Keep not too many ends of files, nor too many bytes of them."""
        with self._lock:
            lengths = {key: len(tail[0]) for key, future in self._tails.items() if (tail := _held(future)) is not None}
            total = sum(lengths.values())
            for key in [key for key in lengths if self._tails[key] not in used]:
                if len(self._tails) <= _TAILS_KEPT and total <= _LARGEST_WHOLE:
                    break
                total -= lengths[key]
                del self._tails[key]

    def ranges(self, requests: Sequence[Range]) -> list[bytes]:
        """Parts of files, at once; neighbours in one request, and what came with the end of a file in none."""
        parts: dict[Range, bytes] = {}
        asked = []
        for key, offset, length in requests:
            tail = _held(self._tails.get(key))
            if tail is not None:
                data, size = tail
                if offset + length > size:
                    raise ValueError(f"file {key} is cut short")
                if offset >= size - len(data):
                    start = offset - (size - len(data))
                    parts[key, offset, length] = data[start : start + length]
                    continue
            asked.append((key, offset, length))
        runs = coalesced(asked)
        for (key, start, _), data in zip(runs, self._together([self._run(*run) for run in runs]), strict=True):
            for request in asked:
                name, offset, length = request
                if name == key and start <= offset and offset + length <= start + len(data):
                    parts[request] = data[offset - start : offset - start + length]
        return [parts[request] for request in requests]

    async def _run(self, key: str, start: int, stop: int) -> bytes:
        """A part of a file that must be there."""
        found = await self._get(key, (start, stop), stop - start)
        if found is None:
            raise ValueError(f"file {key} is missing")
        data, size = found
        data = data[start:stop] if len(data) == size else data
        if len(data) != stop - start:
            raise ValueError(f"file {key} is cut short")
        return data

    def size(self) -> None:
        """Not known: every file would have to be asked for."""

    def root_mark(self) -> None:
        """Not known without a journey."""

    def fingerprint(self) -> str | None:
        """Digest of URL, metadata, and what the server marks each file of the arrays with; None if it marks none.

        A Hub's dataset is read at one commit, which says it all; a bucket lists its marks; a web server is asked for
        each file.
        """
        metadata = read_metadata(self)
        digest = hashlib.sha256(self.url.encode() + b"\0" + metadata.root)
        if self._dataset is not None:
            digest.update(self._dataset.commit.encode())
            return digest.hexdigest()[:32]
        if self.url.startswith("s3://"):
            marks: Iterable[tuple[str, Any]] = wait(self._told("", self._listed))
        else:
            arrays = [array for name, array in metadata.arrays.items() if name in VARIABLES]
            keys = [key for array in arrays for key in array.keys()]  # noqa: SIM118
            marks = zip(keys, self._together([self._mark(key) for key in keys]), strict=True)
        for key, mark in sorted(marks):
            if mark is None:
                return None
            digest.update(f"{key} {mark}\n".encode())
        return digest.hexdigest()[:32]

    async def _listed(self) -> list[tuple[str, str | None]]:
        import obstore

        return [
            (entry["path"], None if entry["e_tag"] is None else f"{entry['size']} {entry['e_tag']}")
            async for page in obstore.list(self._store, chunk_size=1000)
            for entry in page
            if entry["path"].partition("/")[0] in VARIABLES
        ]

    def mark(self, key: str) -> str | None:
        """Size and entity tag of a file; "absent" for one that is not there, None for one without a tag."""
        return wait(self._mark(key))

    async def _mark(self, key: str) -> str | None:
        import obstore

        try:
            about = await self._told(key, lambda: obstore.head_async(self._store, key))
        except FileNotFoundError:
            return "absent"
        return None if about["e_tag"] is None else f"{about['size']} {about['e_tag']}"

    async def _get(self, key: str, part: Any, limit: int) -> Tail:
        """Bytes of a file or part, and the size of the whole; None where it is not there.

        All of the file where the server sends no parts, unless it is large.
        """
        whole = self._partless and part is not None
        try:
            if whole:
                self._refuse_activations(key)
            return await self._told(
                key, lambda: fetch(self._store, key, None if whole else part, _LARGEST_WHOLE if whole else limit)
            )
        except FileNotFoundError:
            return None
        except PartlessError:
            self._partless = True
            return await self._get(key, part, limit)

    def _refuse_activations(self, key: str) -> None:
        if key.partition("/")[0] in RAW_VARIABLES["both"]:
            raise OutliersError(
                f"{self}/{key}: the server cannot send parts of files, which activations are read in; expected one "
                "that serves range requests, such as nginx or S3; views that the store keeps can be asked here too"
            )

    async def _told(self, key: str, request: Callable[[], Awaitable[Result]]) -> Result:
        """What the server answers to a request; its failures in one line of words."""
        for attempt in range(_RETRIES):
            try:
                async with self._slots:
                    return await request()
            except (FileNotFoundError, ValueError):
                raise
            except OutliersError as error:
                raise OutliersError(f"{self}/{key}: {error}") from error
            except TimeoutError as error:
                raise OutliersError(f"{self}/{key}: {ADVICE['Timeout']}") from error
            except Exception as error:  # obstore raises classes of its own
                text = str(error)
                if "status code: 416" in text:
                    raise ValueError(f"file {key} is empty or cut short") from error
                if "Range request not supported" in text:
                    raise PartlessError from error
                kind = re.search(r"kind: (Connect|Timeout|Interrupted)\b", text)
                # obstore repeats a request that fails, but not one whose answer breaks off.
                if kind is not None and kind[1] == "Interrupted" and attempt < _RETRIES - 1:
                    continue
                raise OutliersError(f"{self}/{key}: {reason(error, kind)}") from error
        raise AssertionError("the last attempt returns or raises")

    def _together(self, requests: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Results of requests, several at a time; the first failure ends the others."""
        return wait(together(requests))


def _held(future: Future[Tail] | None) -> Tail:
    """What a request has brought; None while it runs, and where it failed or found nothing."""
    if future is None or not future.done() or future.cancelled() or future.exception() is not None:
        return None
    return future.result()


@lru_cache(maxsize=8)
def _reopened(url: str, dataset: HubDataset | None, opening: str) -> Server:
    return Server(url, dataset, opening)


def coalesced(requests: Sequence[Range]) -> list[tuple[str, int, int]]:
    """Ranges (key, offset, length) as few runs (key, start, stop), of which neighbours of one file share one."""
    runs: list[tuple[str, int, int]] = []
    for key, offset, length in sorted(set(requests)):
        if runs and runs[-1][0] == key and offset <= runs[-1][2] + _GAP:
            runs[-1] = (key, runs[-1][1], max(runs[-1][2], offset + length))
        else:
            runs.append((key, offset, offset + length))
    return runs
