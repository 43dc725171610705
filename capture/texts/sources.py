"""Sources of text: a name on the command line becomes documents of known origin."""

from __future__ import annotations

import hashlib
import itertools
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture.errors import OutliersError
from capture.models.retry import patiently
from capture.progress import Reporter, Silence
from capture.store.paths import user_path
from capture.texts.files import (
    KINDS,
    Record,
    default_field,
    ending_of,
    field_of,
    files_of,
    has_fields,
    read_file,
    text_digest,
)

HUB_DATASETS: Final = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "c4": ("allenai/c4", "en"),
}
"""Repository and configuration behind each short name."""


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
    files: list[Path] | None = None
    if source.startswith("hf:"):
        dataset, config, split = [*source.removeprefix("hf:").split(":"), "", ""][:3]
        if dataset.count("/") != 1 or not all(dataset.split("/")):
            raise OutliersError(f"--text {source} names no dataset; expected hf:ORG/NAME, or hf:ORG/NAME:CONFIG:SPLIT")
        return _hub(source, dataset, config if config else None, split if split else "train", name, reporter)
    if source in HUB_DATASETS:
        return _hub(source, *HUB_DATASETS[source], "train", name, reporter)
    if source != "python-docs":
        files = files_of(source)
        if files is None:
            missing = "is no known source" if ending_of(Path(source)) is None else "is no file"
            what = "holds no text" if user_path(source).is_dir() else missing
            known = ", ".join(["python-docs", *HUB_DATASETS, "hf:ORG/NAME"])
            raise OutliersError(f"--text {source} {what}; expected {known}, or a {KINDS}")
    fields = files is not None and has_fields(files)
    if (chat or field is not None) and not fields:
        option = "--chat" if field is None else f"--field {field}"
        raise OutliersError(f"{option} was given, and --text {source} has no fields; leave it out or name another")
    if files is None:
        return _python_docs()
    records = itertools.chain.from_iterable(read_file(file, name) for file in files)
    return Corpus(records, source, None, text_digest(source), name if fields else None)


def _python_docs() -> Corpus:
    from pydoc_data.topics import topics

    records = [Record(topics[name], f"topic {name} of python-docs") for name in sorted(topics)]
    digest = hashlib.sha256("\n".join(record.value for record in records).encode()).hexdigest()
    return Corpus(records, "python-docs", f"CPython {platform.python_version()}", digest)


def _hub(source: str, name: str, config: str | None, split: str, field: str, reporter: Reporter | None) -> Corpus:
    import datasets
    import huggingface_hub

    told: Reporter = Silence() if reporter is None else reporter
    what = f"text {source}"
    try:
        revision = patiently(
            what, lambda: huggingface_hub.HfApi().dataset_info(name, timeout=20).sha, told, first_contact=True
        )
        stream = patiently(
            what,
            lambda: datasets.load_dataset(name, config, split=split, revision=revision, streaming=True),
            told,
        )
    except OutliersError:
        raise
    except Exception as error:
        raise _hub_error(source, error) from error

    def records() -> Iterator[Record]:
        rows, taken = iter(stream), 0
        broken = False

        def following() -> Any:
            nonlocal rows, broken
            if broken:  # an iterator that raised has ended; a new one goes on behind what was taken
                rows, broken = iter(stream.skip(taken)), False
            try:
                return next(rows, None)
            except Exception:
                broken = True
                raise

        while True:
            try:
                row = patiently(what, following, told)
            except OutliersError:
                raise
            except Exception as error:
                raise _hub_error(source, error) from error
            if row is None:
                return
            taken += 1
            where = f"record {taken} of {name}"
            yield Record(field_of(row, field, where), where)

    return Corpus(records(), source, revision, None, field)


def _hub_error(source: str, error: Exception) -> OutliersError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return OutliersError(
        f"cannot stream --text {source} from the Hugging Face Hub ({reason}); "
        f"offline, use --text python-docs, or a local {KINDS}"
    )
