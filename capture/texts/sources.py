"""Sources of text: a name on the command line becomes documents of known origin."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from capture.errors import OutliersError
from capture.progress import Reporter, Silence
from capture.store.paths import user_path
from capture.texts.files import KINDS, Record, default_field, ending_of, files_of, has_fields, read_file, text_digest
from capture.texts.hub import HUB_DATASETS, HubDataset


@dataclass(frozen=True)
class Corpus:
    """Documents and where they came from.

    Parameters
    ----------
    records : documents, one after another
    source : as named on the command line
    revision : commit of a dataset, version of the interpreter for `python-docs`, None for files
    sha256 : of a file's bytes or of the joined documents; None for what is streamed
    field : that holds the documents; None where the source has no fields
    """

    records: Iterable[Record]
    source: str
    revision: str | None
    sha256: str | None
    field: str | None = None


def open_corpus(
    source: str, *, field: str | None = None, chat: bool = False, reporter: Reporter | None = None
) -> Corpus:
    """Open a source of text.

    Parameters
    ----------
    source : `python-docs`, `fineweb-edu`, `c4`, `hf:ORG/NAME[:CONFIG[:SPLIT]]`, a .txt, .jsonl, .json or .parquet
        file, the first three also as .gz or .zst, or a folder of such files
    field : of the records that holds the documents; None for `text`, or `messages` with `chat`
    chat : documents are conversations
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The source is unknown, missing or unreadable, the hub cannot be reached, or the source has no fields and one
        is asked for.
    """
    name = default_field(chat) if field is None else field
    if source.startswith("hf:") or source in HUB_DATASETS:
        dataset = HubDataset(source, Silence() if reporter is None else reporter)
        return Corpus(dataset.records(name), source, dataset.revision, None, name)
    files = [] if source == "python-docs" else _files(source)
    fields = has_fields(files)
    if (chat or field is not None) and not fields:
        option = "--chat" if field is None else f"--field {field}"
        raise OutliersError(f"{option} was given, and --text {source} has no fields; leave it out or name another")
    if source == "python-docs":
        return _python_docs()
    records = itertools.chain.from_iterable(read_file(file, name) for file in files)
    return Corpus(records, source, None, text_digest(source), name if fields else None)


def _files(source: str) -> list[Path]:
    """The files behind a path that must have some."""
    files = files_of(source)
    if files is None:
        missing = "is no known source" if ending_of(Path(source)) is None else "is no file"
        what = "holds no text" if user_path(source).is_dir() else missing
        known = ", ".join(["python-docs", *HUB_DATASETS, "hf:ORG/NAME"])
        raise OutliersError(f"--text {source} {what}; expected {known}, or a {KINDS}")
    return files


def _python_docs() -> Corpus:
    from pydoc_data.topics import topics

    records = [Record(topics[name], f"topic {name} of python-docs") for name in sorted(topics)]
    digest = hashlib.sha256("\n".join(record.value for record in records).encode()).hexdigest()
    return Corpus(records, "python-docs", f"CPython {platform.python_version()}", digest)
