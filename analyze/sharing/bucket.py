"""The upload to a bucket: data first, several files at a time, then what makes them a store, its root metadata last."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from analyze.reading.transport import credentials, reason
from analyze.sharing.files import Entry
from analyze.sharing.plan import Push, Uploaded, unlike
from capture.errors import OutliersError
from capture.store.files import file_digest

_ROOT: Final = "zarr.json"
_DIGEST: Final = "sha256"  # name of the object's metadata, which a reader of the bucket may use as well
_AT_ONCE: Final = 8
_ONE_REQUEST: Final = 5 * 2**30  # that a bucket takes; an upload in parts that is killed stays open, and costs
_PART: Final = 16 * 2**20
_MOST_PARTS: Final = 9000  # a bucket takes 10,000 for one object
_CONNECT: Final = timedelta(seconds=10)
_RETRIES: Final = 4
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')

Result = TypeVar("Result")


class BucketUpload:
    """An upload that is ready to start.

    Parameters
    ----------
    plan : what is uploaded
    overwrite : replace another store at the target
    report : is told in one line what happens

    Raises
    ------
    OutliersError
        The extra `remote` is not installed, the bucket cannot be reached, or it refuses the credentials.
    """

    def __init__(self, plan: Push, *, overwrite: bool, report: Callable[[str], None]) -> None:
        if find_spec("obstore") is None:
            raise OutliersError(
                "obstore is not installed, which uploading to a bucket needs; "
                "install with: pip install 'outlier-features[remote]'"
            )
        from obstore.store import S3Store

        self._plan, self._overwrite, self._report = plan, overwrite, report
        client: Any = {
            "connect_timeout": _CONNECT,
            "timeout": timedelta(hours=6),  # for one file
            "user_agent": "outlier-features",
            "allow_http": _plain_http(),
        }
        retry: Any = {"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=2)}
        self._store = self._told(
            lambda: S3Store.from_url(plan.url, client_options=client, retry_config=retry, **credentials())
        )
        self._sizes()  # whether the bucket is there and may be read

    def run(self) -> None:
        """Upload.

        Raises
        ------
        OutliersError
            The target holds another store, a permission is missing, or the network fails.
        """
        import obstore

        there = self._there()
        other = unlike(self._plan.url, self._plan.files, there)
        if other and not self._overwrite:
            raise OutliersError(
                f"{self._plan.url} holds another store ({other[0]} differs); choose another target, "
                "or pass --overwrite to replace it"
            )
        if other:
            self._report(f"removing what {self._plan.url} holds")
            # Without its root nobody opens the old store while it is half replaced.
            if _ROOT in there:
                self._told(lambda: obstore.delete(self._store, [_ROOT]))
            self._told(lambda: obstore.delete(self._store, [name for name in other if name != _ROOT]))
        kept = set(there) - set(other) - ({_ROOT} if other else set())
        files = [file for file in self._plan.files if file.name not in kept]
        last = set(self._plan.last)
        self._report(f"uploading {len(files):,} of {len(self._plan.files):,} files, {_gigabytes(files)}")
        self._together(self._put, (file for file in files if file not in last))
        self._together(self._put, (file for file in files if file in last and file.name != _ROOT))
        self._together(self._put, (file for file in files if file.name == _ROOT))
        sizes = self._sizes()
        lacking = [file.name for file in self._plan.files if sizes.get(file.name, (-1, None))[0] != file.size]
        if lacking:
            raise OutliersError(
                f"{self._plan.url} lacks {len(lacking)} files after the upload, {lacking[0]} for one; "
                "run the same command again"
            )

    def _sizes(self) -> dict[str, tuple[int, str | None]]:
        """Size and entity tag of every object at the target, by name."""
        import obstore

        def listed() -> dict[str, tuple[int, str | None]]:
            pages = obstore.list(self._store, chunk_size=1000)
            return {entry["path"]: (entry["size"], entry["e_tag"]) for page in pages for entry in page}

        return self._told(listed)

    def _there(self) -> dict[str, Uploaded]:
        """What the target holds, with the digest that says most: the one left at an upload, else the tag."""
        wanted = {file.name: file for file in self._plan.files}
        sizes = self._sizes()
        # Where sizes differ no digest is needed; nor for what the store has not.
        alike = [name for name, (size, _) in sizes.items() if name in wanted and wanted[name].size == size]
        digests = dict(zip(alike, self._together(self._digest, alike), strict=True))
        found = {}
        for name, (size, tag) in sizes.items():
            match = None if tag is None else _MD5.fullmatch(tag)
            left = digests.get(name)
            if left is not None:
                found[name] = Uploaded(size, "sha256", left)
            else:  # a tag that is no MD5 equals none: the object counts as different
                found[name] = Uploaded(size, "md5", "" if match is None else match[1])
        return found

    def _digest(self, name: str) -> str | None:
        import obstore

        answer = self._told(lambda: obstore.get(self._store, name, options={"head": True}))
        digest = answer.attributes.get(_DIGEST)
        return None if digest is None else str(digest)

    def _put(self, file: Entry) -> None:
        import obstore

        source = file.source
        digest = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_digest(source)
        attributes: Any = {_DIGEST: digest}
        if file.size > _ONE_REQUEST:
            part = max(_PART, -(-file.size // _MOST_PARTS))
            self._told(lambda: obstore.put(self._store, file.name, source, attributes=attributes, chunk_size=part))
            return
        with _mapped(file) as content:
            self._told(lambda: obstore.put(self._store, file.name, content, attributes=attributes, use_multipart=False))

    def _together(self, function: Callable[[Any], Result], items: Iterable[Any]) -> list[Result]:
        """Results of a function of every item, several at a time; the first failure stops the rest."""
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            return list(pool.map(function, items))
        finally:
            pool.shutdown(cancel_futures=True)

    def _told(self, function: Callable[[], Result]) -> Result:
        """What a function that asks the bucket returns; its failures in one line of words."""
        try:
            return function()
        except OutliersError:
            raise
        except Exception as error:  # obstore raises classes of its own, one for each kind of answer
            raise OutliersError(f"{self._plan.url}: {_reason(error)}") from error


@contextmanager
def _mapped(file: Entry) -> Iterator[Any]:
    """Content of a file that the system reads as it is sent, so that none of it need fit into memory."""
    if isinstance(file.source, bytes) or file.size == 0:
        yield file.source if isinstance(file.source, bytes) else b""
        return
    with file.open() as opened:
        yield mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _plain_http() -> bool:
    """Whether the user named an endpoint without TLS, as for a server of their own."""
    endpoints = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")]
    return any(endpoint.startswith("http://") for endpoint in endpoints)


def _reason(error: Exception) -> str:
    text = str(error)
    if "NoSuchBucket" in text:
        return "there is no such bucket; make it first, or check its name"
    kind = re.search(r"kind: (Connect|Timeout|Interrupted)\b", text)
    said = reason(error, kind)
    return said if kind is None else f"{said}, then run the same command again: it goes on where it stopped"


def _gigabytes(files: Iterable[Any]) -> str:
    return f"{sum(file.size for file in files) / 1e9:.2f} GB"
