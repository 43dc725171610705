"""A store on a server: read where it is, by ranges, over HTTP, from a bucket, or from the Hugging Face Hub.

obstore does the transport. It was measured beside fsspec (with aiohttp and s3fs) on what `outliers find` asks of a
server, see docs/benchmarks.md: it takes the end of a file, where the index of a shard is, by one request, where fsspec
asks for the size first; it retries by itself; and it is one wheel without dependencies.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from analyze.reading.hub import HUB_SHAPE, HubDataset, hub_dataset
from capture.errors import OutliersError, one_line
from capture.store.location import Range
from capture.store.metadata import read_metadata
from capture.store.schema import VARIABLES

TIMEOUT: Final = "OUTLIERS_TIMEOUT"
"""Environment variable: seconds that a server may be silent."""

_AT_ONCE: Final = 16
_TAIL: Final = 2**16
_TAILS_KEPT: Final = 1024
_GAP: Final = 2**15  # bytes that are cheaper to fetch along than to ask around
_CONNECT: Final = 10
_SILENCE: Final = 30
_RETRIES: Final = 3
_ADVICE: Final = {
    "Connect": "it cannot be reached: check the address and the network",
    "Timeout": f"it does not answer in time: try again, or allow more seconds with {TIMEOUT}",
    "Interrupted": "the connection was cut in the middle of an answer: try again",
}

Item = TypeVar("Item")
Result = TypeVar("Result")


class _InterruptedError(Exception):
    """An answer broke off."""


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
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._lock = threading.Lock()
        self._tails: dict[str, Future[tuple[bytes, int] | None]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker opens the URL once, at the same commit, however many arrays it is sent."""
        return _reopened, (self.url, self._dataset, self._opening)

    def __str__(self) -> str:
        """The URL."""
        return self.url

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

        silence = os.environ.get(TIMEOUT, str(_SILENCE))
        if not silence.isdecimal() or int(silence) == 0:
            raise OutliersError(f"{TIMEOUT} is {silence}; expected a whole number of seconds")
        base = self.url if self._dataset is None else self._dataset.base
        client: Any = {
            "connect_timeout": timedelta(seconds=min(_CONNECT, int(silence))),
            "read_timeout": timedelta(seconds=int(silence)),
            "timeout": timedelta(hours=1),  # a large chunk over a slow line is no fault
            "user_agent": "outlier-features",
            "allow_http": base.startswith("http://"),
        }
        retry: Any = {
            "max_retries": _RETRIES,
            "retry_timeout": timedelta(seconds=2 * int(silence)),
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
                f"{self.url} cannot be opened ({one_line(error)}); expected https://HOST/STORE.zarr, "
                f"s3://BUCKET/STORE.zarr or {HUB_SHAPE}"
            ) from error

    def absent(self) -> str:
        """In one line, that no store is here, and what to do."""
        return f"no store at {self.url} (404: it has no zarr.json); check the URL, which ends in the store's folder"

    def read(self, keys: Sequence[str], limit: int) -> list[bytes | None]:
        """Whole files, at once; None for one that is not there."""

        def whole(key: str) -> bytes | None:
            found = self._get(key, None, limit)
            return None if found is None else found[0]

        return self._together(whole, keys)

    def tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes, int] | None]:
        """Last bytes of files, at once, each with its size; kept, so that what is asked for again costs nothing."""
        wanted = max(length, _TAIL)
        with self._lock:
            for key in keys:
                if key not in self._tails:
                    self._tails[key] = self._pool.submit(self._get, key, {"suffix": wanted}, wanted)
            futures = [self._tails[key] for key in keys]
        try:
            found = [future.result() for future in futures]
        except BaseException:
            with self._lock:  # so that a later question asks again
                for key, future in zip(keys, futures, strict=True):
                    if self._tails.get(key) is future and not (future.done() and future.exception() is None):
                        del self._tails[key]
            raise
        with self._lock:
            while len(self._tails) > _TAILS_KEPT:
                del self._tails[next(iter(self._tails))]
        return [None if tail is None else (tail[0][-length:], tail[1]) for tail in found]

    def ranges(self, requests: Sequence[Range]) -> list[bytes]:
        """Parts of files, at once; neighbours in one request, and what came with the end of a file in none."""
        parts: dict[Range, bytes] = {}
        asked = []
        for key, offset, length in requests:
            future = self._tails.get(key)
            tail = None if future is None or not future.done() else future.result()
            if tail is not None:
                data, size = tail
                if offset + length > size:
                    raise ValueError(f"file {key} is cut short")
                if offset >= size - len(data):
                    start = offset - (size - len(data))
                    parts[key, offset, length] = data[start : start + length]
                    continue
            asked.append((key, offset, length))

        def fetch(run: tuple[str, int, int]) -> bytes:
            key, start, stop = run
            found = self._get(key, (start, stop), stop - start)
            if found is None:
                raise ValueError(f"file {key} is missing")
            if len(found[0]) != stop - start:
                raise ValueError(f"file {key} is cut short")
            return found[0]

        runs = coalesced(asked)
        for (key, start, _), data in zip(runs, self._together(fetch, runs), strict=True):
            for request in asked:
                name, offset, length = request
                if name == key and start <= offset and offset + length <= start + len(data):
                    parts[request] = data[offset - start : offset - start + length]
        return [parts[request] for request in requests]

    def size(self) -> None:
        """Not known: every file would have to be asked for."""

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
            marks: Iterable[tuple[str, Any]] = self._told("", self._listed)
        else:
            arrays = [array for name, array in metadata.arrays.items() if name in VARIABLES]
            keys = [key for array in arrays for key in array.keys()]  # noqa: SIM118
            marks = zip(keys, self._together(self.mark, keys), strict=True)
        for key, mark in sorted(marks):
            if mark is None:
                return None
            digest.update(f"{key} {mark}\n".encode())
        return digest.hexdigest()[:32]

    def _listed(self) -> list[tuple[str, str | None]]:
        import obstore

        return [
            (entry["path"], None if entry["e_tag"] is None else f"{entry['size']} {entry['e_tag']}")
            for page in obstore.list(self._store, chunk_size=1000)
            for entry in page
            if entry["path"].partition("/")[0] in VARIABLES
        ]

    def mark(self, key: str) -> str | None:
        """Size and entity tag of a file; "absent" for one that is not there, None for one without a tag."""
        import obstore

        try:
            about = self._told(key, lambda: obstore.head(self._store, key))
        except FileNotFoundError:
            return "absent"
        return None if about["e_tag"] is None else f"{about['size']} {about['e_tag']}"

    def _get(self, key: str, part: Any, limit: int) -> tuple[bytes, int] | None:
        """Bytes of a file or part, and the size of the whole; None where it is not there."""
        import obstore

        options: Any = None if part is None else {"range": part}

        def fetch() -> tuple[bytes, int]:
            answer = obstore.get(self._store, key, options=options)
            start, stop = answer.range
            if stop - start > limit:
                raise ValueError(f"{key} is larger than the {limit:,} bytes that it can have")
            return answer.bytes().to_bytes(), answer.meta["size"]

        try:
            return self._told(key, fetch)
        except FileNotFoundError:
            return None

    def _told(self, key: str, function: Callable[[], Result]) -> Result:
        """What a function that asks the server returns; its failures in one line of words."""
        for attempt in range(_RETRIES):
            try:
                return function()
            except (FileNotFoundError, ValueError):
                raise
            except Exception as error:
                if "status code: 416" in str(error):
                    raise ValueError(f"file {key} is empty or cut short") from error
                kind = re.search(r"kind: (Connect|Timeout|Interrupted)\b", str(error))
                # obstore repeats a request that fails, but not one whose answer breaks off.
                if kind is not None and kind[1] == "Interrupted" and attempt < _RETRIES - 1:
                    continue
                raise OutliersError(f"{self.url}/{key}: {reason(error, kind)}") from error
        raise AssertionError("the last attempt returns or raises")

    def _together(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Results of a function of every item, several at a time."""
        return [function(items[0])] if len(items) == 1 else list(self._pool.map(function, items))


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


def reason(error: Exception, kind: re.Match[str] | None) -> str:
    """Why a server failed, and what to do.

    Parameters
    ----------
    error : as obstore raised it
    kind : what obstore calls it, as in `_ADVICE`; None for anything else
    """
    name, text = type(error).__name__, str(error)
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    if name == "PermissionDeniedError" or (status is not None and status[1].startswith("403")):
        return "access is refused (403); check the URL and your credentials"
    if name == "UnauthenticatedError":
        return "the server asks who you are (401); check your credentials"
    if "Range request not supported" in text:
        return "the server cannot send parts of files; expected one that serves range requests, such as nginx or S3"
    if "169.254." in text or ("credentials" in text.lower() and status is None):  # where AWS's own machines ask
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true if public"
    if kind is not None:
        return _ADVICE[kind[1]]
    return f"the server fails ({status[1].strip() if status is not None else one_line(error)}); try again later"


def credentials() -> dict[str, Any]:
    """Where the profiles of AWS's configuration files come from, which obstore leaves to boto3: only if it is there."""
    if any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")):
        return {}
    if find_spec("boto3") is None:
        return {}
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except Exception:  # no profile: obstore goes on with its own ways
        return {}
