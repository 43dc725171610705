"""Text becomes blocks of tokens: nothing padded, nothing overlapping, nothing lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import corpus as corpora
from capture.corpus import Corpus, adds_bos, open_corpus, token_blocks
from capture.errors import OutliersError
from tests.conftest import WORDS, tiny_tokenizer

pytest.importorskip("transformers")


def corpus_of(*documents: str) -> Corpus:
    return Corpus(documents, "made up", None, None)


@given(
    documents=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=6),
    length=st.integers(2, 7),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_blocks_are_the_joined_documents_cut(documents: list[list[str]], length: int, bos: bool, eos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos, eos=eos)
    stream: list[int] = []
    for number, words in enumerate(documents):
        stream += ([2] if eos and number else []) + [3 + WORDS.index(word) for word in words]
    room = length - bos
    full = len(stream) // room
    texts = corpus_of(*(" ".join(words) for words in documents))
    if full:
        blocks = token_blocks(texts, tokenizer, sequences=full, length=length, bos=bos)
        assert blocks.shape == (full, length)
        assert blocks.dtype == np.int32
        assert blocks[:, int(bos) :].ravel().tolist() == stream[: full * room]
        assert not bos or (blocks[:, 0] == 1).all()
    with pytest.raises(OutliersError, match=f"fill {full} blocks of {length}"):
        token_blocks(texts, tokenizer, sequences=full + 1, length=length, bos=bos)


def test_a_tokenizer_that_adds_bos_is_recognised() -> None:
    assert adds_bos(tiny_tokenizer(bos=True))
    assert not adds_bos(tiny_tokenizer())


def test_bos_without_a_bos_token_is_refused() -> None:
    with pytest.raises(OutliersError, match="no BOS token; use --no-bos"):
        token_blocks(corpus_of("alpha"), tiny_tokenizer(), sequences=1, length=2, bos=True)


def test_text_behind_the_last_block_is_not_read() -> None:
    def documents() -> Iterator[str]:
        yield "alpha beta gamma"
        raise AssertionError("read on")

    blocks = token_blocks(Corpus(documents(), "", None, None), tiny_tokenizer(), sequences=1, length=3, bos=False)
    assert blocks.tolist() == [[3, 4, 5]]


def test_a_long_document_is_tokenized_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_PIECE", 40)
    lines = "\n".join(" ".join(WORDS) for _ in range(50))
    pieces = list(corpora._pieces(lines))
    assert "".join(pieces) == lines
    assert max(map(len, pieces)) <= 40
    whole = list(corpora._pieces("x" * 100))  # no line end to cut behind
    assert "".join(whole) == "x" * 100


def test_python_docs_are_english_prose_of_known_origin() -> None:
    source = open_corpus("python-docs")
    texts = list(source.documents)
    assert len(texts) > 50
    assert 'The "assert" statement' in texts[0]
    assert source.revision is not None
    assert source.revision.startswith("CPython 3.")
    assert source.sha256 is not None
    assert len(source.sha256) == 64


def write(path: Path, records: list[Any]) -> None:
    content = "\n".join(json.dumps(record) for record in records) + "\n\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
def test_local_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    documents = ["alpha", "beta\nünïcode"]
    if name == "a.txt":
        documents = ["alpha\nbeta"]
        path.write_text(documents[0])
    elif name == "a.parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": [1, 2], "text": documents}), path)
    else:
        write(path, [{"text": text, "id": 1} for text in documents])
    source = open_corpus(str(path))
    assert list(source.documents) == documents
    assert source.sha256 is not None


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 of .* has no string field `text` \(it has: body\)"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2"),
        ("a.jsonl", b"{nonsense\n", "no JSON lines file"),
        ("a.jsonl.gz", b"not compressed", "expected a gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], "damaged"),
        ("a.parquet", b"nonsense", "no readable Parquet file"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.csv", b"x", "no known source"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutliersError, match=expected) as caught:
        list(open_corpus(str(tmp_path / name)).documents)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_text_names_its_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(OutliersError, match="no column `text`; it has body"):
        list(open_corpus(str(tmp_path / "a.parquet")).documents)


@pytest.mark.parametrize("source", ["missing.txt", "nonsense", "hf:onlyname", "hf:a/b/c"])
def test_an_unknown_source_is_refused(source: str) -> None:
    with pytest.raises(OutliersError, match=r"is no file|no known source|names no dataset"):
        open_corpus(source)


class Stream:
    """Records that are streamed; an exception among them is raised once, or ever again if it is the last."""

    def __init__(self, records: list[Any], begin: int = 0) -> None:
        self.records, self.begin = records, begin

    def skip(self, count: int) -> Stream:
        return Stream(self.records, count)

    def __iter__(self) -> Iterator[Any]:
        given = 0
        for record in list(self.records):
            if isinstance(record, Exception):
                if record is not self.records[-1]:
                    self.records.remove(record)
                raise record
            if given >= self.begin:
                yield record
            given += 1  # noqa: SIM113 -- exceptions are not counted


class Hub:
    """Stands in for the hub: what `datasets` and `huggingface_hub` were asked, and what they answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, records: list[Any]) -> None:
        import datasets
        import huggingface_hub

        self.asked: tuple[Any, ...] = ()
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: type("Info", (), {"sha": "c0ffee"}))

        def load(name: str, config: str | None, **options: Any) -> Stream:
            self.asked = (name, config, options["split"], options["revision"], options["streaming"])
            return Stream(records)

        monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("fineweb-edu", ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")),
        ("c4", ("allenai/c4", "en", "train")),
        ("hf:org/name", ("org/name", None, "train")),
        ("hf:org/name:part:test", ("org/name", "part", "test")),
    ],
)
def test_hub_datasets_are_streamed_at_a_known_revision(
    monkeypatch: pytest.MonkeyPatch, source: str, asked: tuple[Any, ...]
) -> None:
    hub = Hub(monkeypatch, [{"text": "alpha"}, {"text": "beta"}])
    opened = open_corpus(source)
    assert list(opened.documents) == ["alpha", "beta"]
    assert hub.asked == (*asked, "c0ffee", True)
    assert opened.revision == "c0ffee"


def test_a_stream_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    broken = [ConnectionError("reset by peer"), TimeoutError()]
    texts = [{"text": text} for text in ("alpha", "beta", "gamma")]
    Hub(monkeypatch, [broken[0], texts[0], texts[1], broken[1], texts[2]])
    assert list(open_corpus("c4").documents) == ["alpha", "beta", "gamma"]


def test_a_hub_that_breaks_off_for_good_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.models.retry.PATIENCE", 0)
    Hub(monkeypatch, [{"text": "alpha"}, ConnectionError("reset by peer\nand more")])
    documents = iter(open_corpus("c4").documents)
    assert next(documents) == "alpha"
    with pytest.raises(
        OutliersError, match=r"refused text c4 in 1 attempts \(connection failed: reset by peer"
    ) as caught:
        next(documents)
    assert "\n" not in str(caught.value)


def test_a_stream_that_cannot_be_read_names_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, [{"text": "alpha"}, RuntimeError("no such split\nand more")])
    documents = iter(open_corpus("c4").documents)
    assert next(documents) == "alpha"
    with pytest.raises(OutliersError, match=r"\(no such split\); offline, use --text python-docs") as caught:
        next(documents)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_names_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(OutliersError, match="cannot stream --text fineweb-edu .* offline, use"):
        open_corpus("fineweb-edu")
