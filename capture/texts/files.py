"""Local files of documents, one guard for all: what is wrong with a file is told with its row and a remedy."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from capture.errors import OutliersError
from capture.store.paths import user_path

KINDS: Final = ".txt, .jsonl, .json or .parquet file (.gz and .zst too), or a folder of them"
_PLAIN: Final = (".txt",)
_LINES: Final = (".jsonl", ".json")
_COLUMNS: Final = (".parquet",)
_WIDE: Final = 4  # bytes, in which a text of UTF-16 or UTF-32 has a zero
_WIDE_BOMS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_SHOWN: Final = 40  # characters of a value in a message


@dataclass(frozen=True)
class Record:
    """What stands in the place of one document.

    Parameters
    ----------
    value : text, token ids or messages, not checked yet
    where : row and file, for messages
    """

    value: Any
    where: str


def files_of(source: str) -> list[Path] | None:
    """The files behind a path, a folder's in the order of their names; None where nothing there is a text."""
    path = user_path(source)
    if path.is_file():
        return [path] if ending_of(path) else None
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and ending_of(file)] if path.is_dir() else []
    hidden = [file for file in found if any(part.startswith(".") for part in file.relative_to(path).parts)]
    return [file for file in found if file not in hidden] or None


def has_fields(files: list[Path]) -> bool:
    """Whether any of them has records with fields, which plain text has not."""
    return any(ending_of(file) not in _PLAIN for file in files)


def text_digest(source: str) -> str | None:
    """SHA-256 of a file's bytes, of a folder that of names and digests; None for what is neither."""
    files = files_of(source)
    if files is None:
        return None
    digests = []
    for file in files:
        with _guarded(file), file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    path = user_path(source)
    if path.is_file():
        return digests[0]
    named = (f"{file.relative_to(path).as_posix()} {one}\n" for file, one in zip(files, digests, strict=True))
    return hashlib.sha256("".join(named).encode()).hexdigest()


def read_file(path: Path, name: str) -> Iterator[Record]:
    """The records of one file.

    Parameters
    ----------
    path : a file of one of the known kinds
    name : of the field that holds the document, where the file has fields

    Raises
    ------
    OutliersError
        The file is damaged or cannot be read, a row is of another kind, or a row has no such field.
    """
    ending = ending_of(path)
    with _guarded(path) as place:
        if ending in _PLAIN:
            with _opened(path) as content:
                whole = content.read()
                if b"\0" in whole[:_WIDE]:  # which UTF-8 may have, and texts of other encodings begin with
                    raise UnicodeDecodeError("utf-8", whole[:_WIDE], 0, 1, "wide")
                yield Record(whole.decode(), str(path))
        elif ending in _LINES:
            with _opened(path) as lines:
                for place.row, line in enumerate(lines, 1):
                    text = line.decode("utf-8-sig" if place.row == 1 else "utf-8")
                    if text.strip():
                        where = f"line {place.row} of {path}"
                        yield Record(field_of(json.loads(text), name, where), where)
        else:
            yield from _parquet(path, name, place)


def default_field(chat: bool) -> str:
    """The field that holds the documents where none is named."""
    return "messages" if chat else "text"


def field_of(record: Any, name: str, where: str) -> Any:
    """What a field of a record holds.

    Raises
    ------
    OutliersError
        The record has no such field.
    """
    if isinstance(record, dict) and name in record:
        return record[name]
    has = f"its fields are {_named(record)}" if isinstance(record, dict) else f"it is {shown(record)}"
    raise OutliersError(f"{where} has no field `{name}` ({has}); name the one that holds the text with --field")


def _named(names: Iterable[str]) -> str:
    return ", ".join(map(str, names)) or "none at all"


def shown(value: Any) -> str:
    """A value for a message: what kind it is, and how it begins."""
    if value is None:
        return "null"
    told = repr(value)
    return f"a {type(value).__name__} ({told if len(told) < _SHOWN else told[:_SHOWN] + '...'})"


def ending_of(path: Path) -> str | None:
    """Kind of a file by the end of its name, without that of a compression; None where it is none of them."""
    name = path.name.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    known = (*_PLAIN, *_LINES, *_COLUMNS)
    return next((end for end in known if plain.endswith(end) and (plain == name or end not in _COLUMNS)), None)


def _parquet(path: Path, name: str, place: _Place) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        names = table.schema_arrow.names
        if name not in names:
            raise OutliersError(
                f"{path} has no column `{name}`; its columns are {_named(names)}; name one of them with --field"
            )
        for batch in table.iter_batches(columns=[name], batch_size=1024):
            for value in batch.column(0):
                place.row += 1
                yield Record(value.as_py(), f"row {place.row} of {path}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed."""
    name = path.name.lower()
    if name.endswith(".zst"):
        import pyarrow as pa

        with io.BufferedReader(pa.input_stream(path, compression="zstd")) as content:
            yield content
    else:
        opener: Any = gzip.open if name.endswith(".gz") else open
        with opener(path, "rb") as content:
            yield content


@dataclass
class _Place:
    """The row that is being read; 0 where a file has none, or none yet."""

    row: int = 0


@contextlib.contextmanager
def _guarded(path: Path) -> Iterator[_Place]:
    """Tell in one line whatever keeps a file from being read."""
    place = _Place()
    try:
        yield place
    except (OSError, EOFError, ValueError, ArithmeticError, zlib.error, RecursionError) as error:
        raise _unreadable(path, place, error) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "pyarrow":  # whose errors have no other base in common
            raise
        raise _unreadable(path, place, error) from error


def _unreadable(path: Path, place: _Place, error: Exception) -> OutliersError:
    lines = str(error).strip().splitlines()
    reason, remedy = lines[0] if lines else type(error).__name__, "get it again or mend it"
    row = f" at {'row' if ending_of(path) in _COLUMNS else 'line'} {place.row}" if place.row else ""
    where = f"{path} cannot be read{row}"
    if isinstance(error, UnicodeDecodeError):
        begins = place.row <= 1 and ending_of(path) not in _COLUMNS
        wide = begins and (error.object.startswith(_WIDE_BOMS) or b"\0" in error.object[:_WIDE])
        reason = "UTF-16 or UTF-32, by its first bytes" if wide else f"not UTF-8 at byte {error.start}"
        remedy = "convert it to UTF-8"
    elif isinstance(error, json.JSONDecodeError):
        remedy = "expected one JSON object a line; mend it"
    elif isinstance(error, RecursionError):
        reason = "lists within lists without end"
    elif isinstance(error, (FileNotFoundError, PermissionError)):
        reason, remedy = str(error.strerror), "check the path and who may read it"
    return OutliersError(f"{where} ({reason}); {remedy}")
