"""Sources of text: files, folders and the hub, each of known origin."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture.errors import OutliersError
from capture.texts.sources import Corpus, open_corpus

pytest.importorskip("transformers")


def values(corpus: Corpus) -> list[Any]:
    return [record.value for record in corpus.records]


def test_python_docs_are_english_prose_of_known_origin() -> None:
    source = open_corpus("python-docs")
    texts = values(source)
    assert len(texts) > 50
    assert 'The "assert" statement' in texts[0]
    assert source.revision is not None
    assert source.revision.startswith("CPython 3.")
    assert source.sha256 is not None
    assert len(source.sha256) == 64


def test_a_folder_of_files_is_one_source(tmp_path: Path) -> None:
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps({"body": "beta"}).encode()))
    (tmp_path / "a.txt").write_text("alpha")
    opened = open_corpus(str(tmp_path), field="body")
    assert values(opened) == ["alpha", "beta"]
    assert (opened.field, opened.revision) == ("body", None)
    assert opened.sha256 is not None
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutliersError, match=r"empty holds no text; expected python-docs, .* or a folder of them"):
        open_corpus(str(tmp_path / "empty"))


def test_fields_of_what_has_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("alpha")
    for source in (str(tmp_path / "a.txt"), str(tmp_path), "python-docs"):
        with pytest.raises(OutliersError, match=r"--field body was given, and --text .* has no fields; leave it out"):
            open_corpus(source, field="body")
        with pytest.raises(OutliersError, match="--chat was given"):
            open_corpus(source, chat=True)
        assert open_corpus(source).field is None


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
    assert values(opened) == ["alpha", "beta"]
    assert hub.asked == (*asked, "c0ffee", True)
    assert (opened.revision, opened.field) == ("c0ffee", "text")


def test_fields_of_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, [{"messages": [], "prompt": "alpha"}, {"prompt": None}])
    assert values(open_corpus("c4", field="prompt")) == ["alpha", None]
    with pytest.raises(
        OutliersError, match=r"record 2 of allenai/c4 has no field `messages` \(its fields are prompt\)"
    ):
        values(open_corpus("c4", chat=True))


def test_a_stream_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    broken = [ConnectionError("reset by peer"), TimeoutError()]
    texts = [{"text": text} for text in ("alpha", "beta", "gamma")]
    Hub(monkeypatch, [broken[0], texts[0], texts[1], broken[1], texts[2]])
    assert values(open_corpus("c4")) == ["alpha", "beta", "gamma"]


def test_a_hub_that_breaks_off_for_good_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.models.retry.PATIENCE", 0)
    Hub(monkeypatch, [{"text": "alpha"}, ConnectionError("reset by peer\nand more")])
    records = iter(open_corpus("c4").records)
    assert next(records).value == "alpha"
    with pytest.raises(
        OutliersError, match=r"refused text c4 in 1 attempts \(connection failed: reset by peer"
    ) as caught:
        next(records)
    assert "\n" not in str(caught.value)


def test_a_stream_that_cannot_be_read_names_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, [{"text": "alpha"}, RuntimeError("no such split\nand more")])
    records = iter(open_corpus("c4").records)
    assert next(records).value == "alpha"
    with pytest.raises(OutliersError, match=r"\(no such split\); offline, use --text python-docs") as caught:
        next(records)
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_names_the_offline_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(OutliersError, match="cannot stream --text fineweb-edu .* offline, use"):
        open_corpus("fineweb-edu")
