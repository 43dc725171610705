"""Text becomes equal-length, non-overlapping blocks of tokens."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.models.retry import patiently
from capture.progress import Reporter, Silence

HUB_DATASETS: Final = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "c4": ("allenai/c4", "en"),
}
"""Repository and configuration behind each short name."""

_OFFLINE_CHOICES: Final = "--text python-docs, or a local .txt, .jsonl, .jsonl.gz or .parquet file"
_PIECE: Final = 1_000_000  # characters tokenized at once, so that a large file needs no large memory


@dataclass(frozen=True)
class Corpus:
    """Documents and where they came from.

    Parameters
    ----------
    documents : texts, one after another
    source : as named on the command line
    revision : commit of a dataset, version of the interpreter for `python-docs`, None for files
    sha256 : of a file's bytes or of the joined documents; None for what is streamed
    """

    documents: Iterable[str]
    source: str
    revision: str | None
    sha256: str | None


def open_corpus(source: str, reporter: Reporter | None = None) -> Corpus:
    """Open a source of text.

    Parameters
    ----------
    source : `python-docs`, `fineweb-edu`, `c4`, `hf:ORG/NAME[:CONFIG[:SPLIT]]`, or a .txt, .jsonl, .jsonl.gz or
        .parquet file; records of the last three have a string field `text`
    reporter : is told where the hub keeps one waiting

    Raises
    ------
    OutliersError
        The source is unknown, missing or unreadable, or the hub cannot be reached.
    """
    if source == "python-docs":
        return _python_docs()
    if source in HUB_DATASETS:
        return _hub(source, *HUB_DATASETS[source], "train", reporter)
    if source.startswith("hf:"):
        name, config, split = [*source.removeprefix("hf:").split(":"), "", ""][:3]
        if name.count("/") != 1 or not all(name.split("/")):
            raise OutliersError(f"--text {source} names no dataset; expected hf:ORG/NAME, or hf:ORG/NAME:CONFIG:SPLIT")
        return _hub(source, name, config if config else None, split if split else "train", reporter)
    return _file(source)


def _python_docs() -> Corpus:
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    digest = hashlib.sha256("\n".join(documents).encode()).hexdigest()
    return Corpus(documents, "python-docs", f"CPython {platform.python_version()}", digest)


def _file(source: str) -> Corpus:
    path = Path(source)
    readers = {".txt": _plain, ".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".parquet": _parquet}
    kind = next((ending for ending in readers if path.name.endswith(ending)), None)
    if kind is None or not path.is_file():
        known = ", ".join(["python-docs", *HUB_DATASETS, "hf:ORG/NAME"])
        what = "is no file" if kind else "is no known source"
        raise OutliersError(f"--text {source} {what}; expected {known} or a .txt, .jsonl, .jsonl.gz or .parquet file")
    return Corpus(readers[kind](path), source, None, text_digest(source))


def text_digest(source: str) -> str | None:
    """SHA-256 of a file's bytes; None for what is no file."""
    if not Path(source).is_file():
        return None
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(path: Path) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OutliersError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error


def _json_lines(path: Path) -> Iterator[str]:
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_field(json.loads(line), f"line {number} of {path}")
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise OutliersError(f"{path} is no JSON lines file ({error}); expected one JSON object a line") from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise OutliersError(f"{path} is damaged ({error}); expected a gzip file") from error


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        if "text" not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise OutliersError(f"{path} has no column `text`; it has {names}")
        for batch in table.iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                yield _text_field({"text": text}, str(path))
    except pa.ArrowException as error:
        raise OutliersError(f"{path} is no readable Parquet file ({str(error).splitlines()[0]})") from error


def _text_field(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise OutliersError(f"{where} has no string field `text` (it has: {has}); rename the field that holds the text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OutliersError(f"{where} is no Unicode text (half a surrogate pair at {error.start}); mend it") from error
    return text


def _hub(source: str, name: str, config: str | None, split: str, reporter: Reporter | None) -> Corpus:
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

    def documents() -> Iterator[str]:
        records, taken = iter(stream), 0
        broken = False

        def following() -> Any:
            nonlocal records, broken
            if broken:  # an iterator that raised has ended; a new one goes on behind what was taken
                records, broken = iter(stream.skip(taken)), False
            try:
                return next(records, None)
            except Exception:
                broken = True
                raise

        while True:
            try:
                record = patiently(what, following, told)
            except OutliersError:
                raise
            except Exception as error:
                raise _hub_error(source, error) from error
            if record is None:
                return
            taken += 1
            yield _text_field(record, f"a record of {name}")

    return Corpus(documents(), source, revision, None)


def _hub_error(source: str, error: Exception) -> OutliersError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return OutliersError(
        f"cannot stream --text {source} from the Hugging Face Hub ({reason}); offline, use {_OFFLINE_CHOICES}"
    )


def adds_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its beginning-of-sequence token first by itself."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and len(ids) > 0 and ids[0] == tokenizer.bos_token_id


def token_blocks(corpus: Corpus, tokenizer: Any, *, sequences: int, length: int, bos: bool) -> npt.NDArray[np.int32]:
    """Cut a corpus into blocks of tokens.

    Documents are tokenized without special tokens and joined by the tokenizer's end-of-text token where it has one; the
    stream is cut every `length` tokens (`length - 1` where a BOS takes the first place). Nothing is padded, nothing
    overlaps, and the text behind the last block is not read.

    Parameters
    ----------
    corpus : where the text comes from
    tokenizer : a Hugging Face tokenizer
    sequences, length : number of blocks, and tokens in each
    bos : put the tokenizer's BOS first in each block

    Returns
    -------
    (sequences, length) int32

    Raises
    ------
    OutliersError
        There is too little text, or `bos` is asked of a tokenizer without one.
    """
    if bos and tokenizer.bos_token_id is None:
        raise OutliersError("--bos was given, but this tokenizer has no BOS token; use --no-bos")
    start = [tokenizer.bos_token_id] if bos else []
    taken = length - len(start)
    if taken < 1:
        raise OutliersError(f"--length {length} leaves no room for text behind the BOS token; use --length 2 or more")
    tokens: list[int] = []
    for number, document in enumerate(corpus.documents):
        if number > 0 and tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
        for piece in _pieces(document):
            tokens.extend(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
            if len(tokens) >= sequences * taken:
                break
        if len(tokens) >= sequences * taken:
            break
    full = len(tokens) // taken
    if full < sequences:
        raise OutliersError(
            f"--text {corpus.source} has {len(tokens)} tokens, which fill {full} blocks of {length}, and "
            f"{sequences} were asked for; use --sequences {full}, a smaller --length, or more text"
            if full
            else f"--text {corpus.source} has {len(tokens)} tokens, which fill 0 blocks of {length}; "
            "use a smaller --length or more text"
        )
    blocks = np.array(tokens[: sequences * taken], dtype=np.int32).reshape(sequences, taken)
    return np.hstack([np.full((sequences, len(start)), start, dtype=np.int32).reshape(sequences, len(start)), blocks])


def vocabulary(tokenizer: Any, token_id: npt.NDArray[np.int32]) -> dict[int, str]:
    """Text of every token that occurs, decoded by itself, for readers without the tokenizer."""
    return {number: tokenizer.decode([number]) for number in np.unique(token_id).tolist()}


def _pieces(document: str) -> Iterator[str]:
    """Cut a very long document behind line ends; a shorter one stays whole."""
    begin = 0
    while len(document) - begin > _PIECE:
        cut = document.rfind("\n", begin, begin + _PIECE) + 1
        end = cut if cut > begin else begin + _PIECE
        yield document[begin:end]
        begin = end
    yield document[begin:]
