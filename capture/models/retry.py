"""Patience with the Hugging Face Hub: rate limits and passing faults are waited out, for a bounded time.

`huggingface_hub` repeats most requests by itself, some five times within half a minute, and `datasets` its reads.
Neither repeats the question for a repository's present commit, and half a minute is too short for a rate limit, whose
window is five minutes. This goes around both.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

from capture.errors import OutliersError, one_line
from capture.progress import Reporter

Result = TypeVar("Result")

PATIENCE: Final = 900.0
"""Seconds that one call waits in all: three windows of the hub's rate limit."""

_LONGEST: Final = 60.0  # seconds between two attempts where the server names no time
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
# By name, for the hub's client changed its HTTP library with its versions: requests, httpx, httpx2; fsspec has aiohttp.
_BROKEN: Final = frozenset(
    {
        "TimeoutException",
        "NetworkError",
        "RemoteProtocolError",
        "ConnectionError",
        "Timeout",
        "TimeoutError",
        "ClientError",
    }
)
_UNREACHABLE: Final = frozenset({"ConnectError", "ConnectionRefusedError"})
_FINAL: Final = frozenset({"OfflineModeIsEnabled"})  # asked for by the user, and a ConnectionError by class
_RESET: Final = re.compile(r"\bt\s*=\s*(\d+)")


@dataclass(frozen=True)
class Fault:
    """A failure that may pass.

    Parameters
    ----------
    reason : what happened, in a few words
    asked : seconds that the server asks to wait; None where it does not say
    unreachable : whether no connection came about at all
    """

    reason: str
    asked: float | None = None
    unreachable: bool = False


def passing_fault(error: BaseException) -> Fault | None:
    """What of an exception, or of those behind it, may pass by itself; None where nothing does."""
    for cause in _causes(error):
        names = {cls.__name__ for cls in type(cause).__mro__}
        response: Any = getattr(cause, "response", None)
        status = getattr(response, "status_code", None)
        if names & _FINAL:
            return None
        if isinstance(status, int):
            if status not in _PASSING:
                return None
            return Fault(f"{status} {HTTPStatus(status).phrase}", _asked(response.headers))
        if names & _BROKEN:
            return Fault(f"connection failed: {one_line(cause)}", unreachable=bool(names & _UNREACHABLE))
    return None


def patiently(what: str, call: Callable[[], Result], reporter: Reporter, *, first_contact: bool = False) -> Result:
    """Call again while what goes wrong may pass, for up to `PATIENCE`: exponential back-off with jitter, or as asked.

    Parameters
    ----------
    what : what is being asked for, such as "the model Qwen/Qwen3-8B"
    call : the request; it must bear being repeated
    reporter : is told of every wait
    first_contact : where no connection comes about at all, pass that on at once: the machine is offline

    Returns
    -------
    what `call` returns; its other exceptions pass through

    Raises
    ------
    OutliersError
        The fault did not pass in time, or the server asks to wait longer.
    """
    deadline = time.monotonic() + PATIENCE
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            fault = passing_fault(error)
            if fault is None or (first_contact and fault.unreachable):
                raise
            attempt += 1
            seconds = _pause(fault, attempt)
            if time.monotonic() + seconds > deadline:
                asked = "" if fault.asked is None else f", and it asks to wait {fault.asked:.0f} s more"
                raise OutliersError(
                    f"the Hugging Face Hub refused {what} in {attempt} attempts ({fault.reason}{asked}); run the same "
                    "command again later; logging in (hf auth login) raises rate limits"
                ) from error
            reporter.wait(f"{what}: {fault.reason}", seconds)
            time.sleep(seconds)


def _pause(fault: Fault, attempt: int) -> float:
    """Seconds before the next attempt: never less than the server asks, and random, so that not all come at once."""
    if fault.asked is not None:
        return fault.asked + random.uniform(0, 1)
    return min(_LONGEST, 2.0**attempt) * random.uniform(0.5, 1)


def _asked(headers: Any) -> float | None:
    """Seconds that `Retry-After` (a number or a date) or else `RateLimit` asks to wait."""
    value = str(headers.get("retry-after", "")).strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    reset = _RESET.search(str(headers.get("ratelimit", "")))
    return None if reset is None else float(reset[1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it arose from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__cause__ or cause.__context__
