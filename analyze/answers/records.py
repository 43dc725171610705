"""Records that are kept beside a store's data: JSON in one canonical form, with the SHA-256 of its own content."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import xarray as xr

from analyze.reading.arrays import refuse_replaced
from capture.errors import OutliersError, one_line
from capture.store.files import AtomicFile, read_plain

Read = TypeVar("Read")

_LARGEST: Final = 2**26  # bytes of a record
_FAMILY: Final = "outlier-features "


def sealed(content: dict[str, Any]) -> str:
    """Text of a record: its content, and the digest of it.

    Parameters
    ----------
    content : strict JSON, with `format` and `version`
    """
    plain = json.dumps(content, allow_nan=False, ensure_ascii=False, sort_keys=True)
    return json.dumps(
        {"sha256": sha256(plain.encode()).hexdigest(), **content},
        allow_nan=False,
        ensure_ascii=False,
        sort_keys=True,
        indent=1,
    )


def unsealed(text: str, form: str, version: int) -> dict[str, Any]:
    """Content of a record.

    Parameters
    ----------
    text : of `sealed`
    form, version : what its `format` and `version` must be

    Raises
    ------
    ValueError
        The text is not, to the last bit, what `sealed` made, or is of another kind.
    """
    content = _parsed(text)
    if content.get("format") != form:
        raise ValueError(f"it is no record of {form}")
    if content.get("version") != version:
        raise ValueError(f"it has version {content.get('version')}, and this release reads {version}")
    return _checked(content, text)


def refuse_foreign(file: Path, record: tuple[Any, ...], store: tuple[Any, ...], command: str) -> None:
    """Refuse a record that was made for another store than the one it lies in, or that answers another question.

    Parameters
    ----------
    file : where the record is
    record, store : what tells stores and questions apart, as the record has it and as it must be
    command : that makes such records

    Raises
    ------
    OutliersError
        It was.
    """
    if record != store:
        raise OutliersError(
            f"{file} is the record of another store or question than its place says; move it away, and run "
            f"outliers {command} again"
        )


def write_record(store: xr.Dataset, file: Path, text: str) -> None:
    """Keep a record in the folder of its store; a link in its place goes, and is not followed.

    Parameters
    ----------
    store : that it was made from, from `open_store`
    file : where
    text : of `sealed`

    Raises
    ------
    OutliersError
        The store was replaced or removed since it was opened.
    """
    refuse_replaced(store.encoding["location"], store.encoding["root_mark"])
    file.parent.mkdir(exist_ok=True)
    with AtomicFile(file) as out:
        out.write(text.encode())


def any_unsealed(text: str) -> dict[str, Any]:
    """Content of a record of any kind; else as `unsealed`."""
    content = _parsed(text)
    if not str(content.get("format")).startswith(_FAMILY):
        raise ValueError("it is no record")
    return _checked(content, text)


def read_text(file: Path) -> str:
    """Text of a file that may be a stranger's.

    Raises
    ------
    OSError, ValueError
        It is missing, no plain file, larger than a record, or no text.
    """
    return read_plain(file, _LARGEST).decode()


def read_record(file: Path, load: Callable[[str], Read], command: str) -> Read:
    """Read one record.

    Parameters
    ----------
    file : where it is
    load : makes it of its text; ValueError where that is none
    command : that makes such records

    Raises
    ------
    OutliersError
        It cannot be read, is damaged, or is of a newer release.
    """
    try:
        return load(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise OutliersError(
            f"{file} is damaged or of a newer release ({one_line(error)}); restore it from a copy, or remove it and "
            f"run outliers {command} again"
        ) from error


def is_record(file: Path) -> bool:
    """Whether a file is a sound record of any kind."""
    try:
        any_unsealed(read_text(file))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _parsed(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is no record")
    return content


def _checked(content: dict[str, Any], text: str) -> dict[str, Any]:
    content.pop("sha256", None)
    if sealed(content) != text:
        raise ValueError("it does not match its checksum")
    return content
