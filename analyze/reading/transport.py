"""Bytes from a server: how long a request may take, how it is interrupted, and what its failures mean.

Requests run in an event loop of a thread of its own. Whoever waits for one can be interrupted, which then ends it.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from capture.errors import OutliersError, one_line

TIMEOUT: Final = "OUTLIERS_TIMEOUT"
"""Environment variable: seconds that a server may be silent, and in which it must send `LEAST` bytes."""

LEAST: Final = 2**16
"""Bytes that a server must send within `TIMEOUT` seconds, or all that are left."""

_SILENCE: Final = 30
_FAREWELL: Final = 0.2  # seconds in which a request that was ended needs the interpreter once more
ADVICE: Final = {
    "Connect": "it cannot be reached: check the address and the network",
    "Timeout": f"it does not answer in time: try again, or allow more seconds with {TIMEOUT}",
    "Interrupted": "the connection was cut in the middle of an answer: try again",
}

_STRANGE: Final = re.compile(
    r"Content-(?:Range|Length) [^;]*?(?:missing|not present)[^;]*?(?:response|$)|value for CONTENT_RANGE"
    r"|Requested \S+ got \S+|[Ii]nvalid last modified|error following redirect|\b3\d\d [A-Z][A-Za-z ]+"
)
_ENCODINGS: Final = ("gzip", "deflate", "br", "zstd")

Result = TypeVar("Result")


class PartlessError(Exception):
    """The server sends no parts of files."""


def silence() -> int:
    """Seconds that a server may be silent.

    Raises
    ------
    OutliersError
        The environment says no whole number.
    """
    text = os.environ.get(TIMEOUT, str(_SILENCE))
    if not re.fullmatch(r"\d{1,9}", text) or int(text) == 0:
        raise OutliersError(f"{TIMEOUT} is {text}; expected a whole number of seconds")
    return int(text)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="outliers-requests", daemon=True).start()
    return loop


def begin(request: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Start a request."""
    return asyncio.run_coroutine_threadsafe(request, _loop())


def wait(request: Coroutine[Any, Any, Result]) -> Result:
    """Result of a request; an interrupt while it is waited for ends it."""
    future = begin(request)
    try:
        return future.result()
    except KeyboardInterrupt:
        end([future])
        raise


def end(requests: Iterable[Future[Any]]) -> None:
    """End requests that nobody waits for any more."""
    for request in requests:
        request.cancel()
    time.sleep(_FAREWELL)


async def within(seconds: float, request: Awaitable[Result]) -> Result:
    """Result of a request, which is ended where it takes longer: TimeoutError."""
    try:
        return await asyncio.wait_for(request, seconds)
    except TimeoutError:
        await asyncio.sleep(_FAREWELL)
        raise


async def together(requests: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results of requests that run at once; the first failure ends the others."""
    tasks = [asyncio.ensure_future(request) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        ended = [task.cancel() for task in tasks]
        if any(ended):
            await asyncio.sleep(_FAREWELL)


async def fetch(store: Any, key: str, part: Any, limit: int) -> tuple[bytes, int]:
    """Bytes of a file or of a part of it, and the size of the whole file.

    Parameters
    ----------
    store : object of obstore
    key : of the file
    part : of it, as obstore's `range`; all of it where None
    limit : bytes that it can have

    Raises
    ------
    ValueError
        The answer is longer.
    TimeoutError
        The server is silent for too long, or sends too little in that time.
    """
    import obstore

    seconds = silence()
    options: Any = None if part is None else {"range": part}
    # obstore has a time for each of its attempts; this one bounds a head that drips.
    answer = await within(4 * seconds, obstore.get_async(store, key, options=options))
    encoding = answer.attributes.get("Content-Encoding")
    if encoding in _ENCODINGS:
        raise OutliersError(f"the server compresses its files ({encoding}); have it send them as they are")
    start, stop = answer.range
    if stop - start > limit:
        raise ValueError(f"{key} is larger than the {limit:,} bytes that it can have")
    pieces: list[Any] = []
    received = 0
    stream = answer.stream(min_chunk_size=LEAST).__aiter__()
    while True:
        try:
            piece = await within(seconds, stream.__anext__())
        except StopAsyncIteration:
            return b"".join(pieces), answer.meta["size"]
        received += len(piece)
        if received > limit:
            raise ValueError(f"{key} is larger than the {limit:,} bytes that it can have")
        pieces.append(bytes(piece))


def reason(error: Exception, kind: re.Match[str] | None) -> str:
    """Why a server failed, and what to do.

    Parameters
    ----------
    error : as obstore raised it
    kind : what obstore calls it, as in `ADVICE`; None for anything else
    """
    name, text = type(error).__name__, str(error)
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    if name == "PermissionDeniedError" or (status is not None and status[1].startswith("403")):
        return "access is refused (403); check the URL and your credentials"
    if name == "UnauthenticatedError":
        return "the server asks who you are (401); check your credentials"
    if "169.254." in text or ("credentials" in text.lower() and status is None):  # where AWS's own machines ask
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true if public"
    if kind is not None:
        return ADVICE[kind[1]]
    if (strange := _STRANGE.search(text)) is not None:
        return (
            f"its answers are not those of a file server ({strange[0]}); check that the URL is that of the files "
            "themselves, on a server that sends lengths and parts of files as they are, such as nginx or S3"
        )
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
