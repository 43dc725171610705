"""What may be written down of the machine and its user, and what may leave the machine: decided once."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Final

from capture.errors import without_passwords

_RUNNING: ContextVar[tuple[str, ...] | None] = ContextVar("words of the outliers command that runs", default=None)

_SECRET: Final = re.compile(
    r"(?i)(?:token|secret|password|passwd|passphrase|credentials?|authorization|(?:api|access|secret|private)[_-]?key)$"
    r"|(?:^|[_-])(?:pwd|pass|pat|auth|bearer|key|cookie|sig|signature)$"
)
_TOKENS: Final = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w{16,}|A[KS]IA[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w.-]{8,}"
    r"|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|npm_\w{30,}|pypi-[\w-]{16,}|ya29\.[\w-]{16,}"
    r"|(?<=Bearer )\S+)"
)
_QUERY: Final = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?#]*)[?#]\S*")
_HIDDEN: Final = "..."

_START: Final = r"(?:~[\w.-]*|\.{1,2}|\$\{?\w+\}?|file:/{0,2})?/|[A-Za-z]:[/\\]|\\\\|\.{1,2}\\|~\\"
_WHOLE: Final = re.compile(rf"(?P<prefix>(?:[a-z0-9-]{{2,}}:(?!//))?)(?:{_START})")
# A relative path has two slashes, or the ending of a file: ORG/NAME, of the Hub, is none.
_RELATIVE: Final = re.compile(
    r"(?i)(?P<prefix>(?:(?!hf:)[a-z0-9-]{2,}:(?!//))?)(?:[^/\\:<>\s]+[/\\]){2,}[^:<>]+$"
    r"|[^/\\:<>\s]+[/\\](?:[^/\\:<>]+[/\\])*[^/\\:<>]+\.(?:txt|jsonl?|gz|parquet|gguf|safetensors|zarr|zip|toml|csv)$"
)
_INSIDE: Final = re.compile(
    r"(?<![\w/.<~$-])(?:(?:~[\w.-]*|\.{1,2}|\$\{?\w+\}?|file:/{0,2}|[A-Za-z]:)?/(?!/)(?:[^\s/'\"<>|,;:]+/)+"
    r"|(?:[A-Za-z]:|\\)\\(?:[^\s\\/:*?\"<>|]+\\)+)"
)


@contextlib.contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """While the block runs, the process is the `outliers` command with these words."""
    before = _RUNNING.set(tuple(words))
    try:
        yield
    finally:
        _RUNNING.reset(before)


def command_line() -> str | None:
    """The `outliers` command that runs, without secrets; None where another program calls, whose words are its own."""
    words = _RUNNING.get()
    return None if words is None else shlex.join(["outliers", *without_secrets(words)])


def without_secrets(words: Sequence[str]) -> list[str]:
    """Words of a command line with `...` for what looks like a secret: by the option's name, or by itself."""
    told: list[str] = []
    follows = False
    for word in words:
        name, equals, value = word.partition("=")
        if follows and not word.startswith("--"):
            told.append(_HIDDEN)
        elif equals and value and "://" not in name and _SECRET.search(name):
            told.append(f"{name}={_HIDDEN}")
        else:
            told.append(_QUERY.sub(rf"\1?{_HIDDEN}", _TOKENS.sub(_HIDDEN, without_passwords(word))))
        follows = word.startswith("-") and not equals and _SECRET.search(word) is not None
    return told


def shortened(value: Any) -> Any:
    """A value as it may leave this machine: of every path only the last part, and no secret.

    Parameters
    ----------
    value : a text, a number, or lists and objects of them, as attributes have

    Returns
    -------
    the same, with texts replaced where something in them is private
    """
    if isinstance(value, dict):
        return {key: _shortened_command(item) if key == "command" else shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(item) for item in value]
    return _shortened_text(value) if isinstance(value, str) else value


def last_part(place: str) -> str:
    """Where a store is, as it may leave this machine: of a path the last part, of a URL all but secrets."""
    return _shortened_text(place) if "://" in place else re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def _shortened_command(command: Any) -> Any:
    """A command line, each of its words for itself."""
    try:
        words = shlex.split(command)
    except (ValueError, AttributeError):
        return shortened(command)
    told = []
    for word in without_secrets(words):
        option, equals, value = word.partition("=")
        own = option.startswith("-") and equals
        told.append(f"{option}={_shortened_text(value)}" if own else _shortened_text(word))
    return shlex.join(told)


def _shortened_text(text: str) -> str:
    (safe,) = without_secrets([text])
    match = _WHOLE.match(safe) or _RELATIVE.match(safe)
    if match is not None and "\n" not in safe and not re.search(r",\s*[~/]", safe):
        last = re.split(r"[/\\]", safe.rstrip("/\\"))[-1]
        return f"{match['prefix'] or ''}{last}" if last else text
    return _INSIDE.sub("", safe)
