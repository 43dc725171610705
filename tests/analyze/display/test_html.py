"""HTML of results: well-formed, with the numbers that the result has, and a stranger's text only as text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import analyze
from analyze import Criteria, View
from analyze.display import html
from tests import builders

HOSTILE = "<script>alert(1)</script>&\"'\x1b[31m\u202e\n<img src=x onerror=a()>"
ALLOWED = {"div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}


class Reader(HTMLParser):
    """Checks nesting and tags, and keeps the text of cells."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        assert {name for name, _ in attributes} <= {"style"}
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    attributes = {"model_id": HOSTILE, "text_source": HOSTILE, "versions": {HOSTILE: HOSTILE}, "long": "a" * 9999}
    return builders.on_disk(folder / "s.zarr", builders.random_activations(), attributes=attributes)


RESULTS: dict[str, Callable[[Path], Any]] = {
    "criteria": lambda path: Criteria(sites=("ln_attn",), sequences=(0, 2)),
    "view": lambda path: View(sites=(HOSTILE,)),
    "find": lambda path: analyze.find_outliers(path, Criteria(magnitude=1)),
    "pooled": lambda path: analyze.find_outliers(path, Criteria(magnitude=1, counting="pooled")),
    "nothing": lambda path: analyze.find_outliers(path, Criteria(magnitude=1e9)),
    "sweep": lambda path: analyze.sweep(path, None, list(range(1, 41))),
    "null": lambda path: analyze.permutation_null(path, repeats=2),
    "info": lambda path: analyze.store_info(path),
    "dettmers": lambda path: analyze.dettmers_table(path, Criteria(magnitude=2)),
    "portrait": lambda path: analyze.portrait(path, 0),
    "map": lambda path: analyze.feature_map(path, top=3),
    "walk": lambda path: analyze.walk(path, 0),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_table_of_text(name: str, path: Path) -> None:
    result = RESULTS[name](path)
    markup = result._repr_html_()
    assert len(markup) < 40_000
    assert all(character.isprintable() for character in markup)
    assert "<script" not in markup
    assert "<img" not in markup
    assert len(Reader(markup).cells) >= 4


def test_the_cells_are_those_of_the_result(path: Path) -> None:
    found = analyze.find_outliers(path, Criteria(magnitude=1))
    cells = Reader(found._repr_html_()).cells
    assert cells[: 2 * len(found.summary())] == [word for pair in found.summary() for word in pair]
    first = found.features[0]
    row = cells[2 * len(found.summary()) + 6 :][:6]
    assert row == [
        str(first.sequence),
        str(first.feature),
        f"{first.layer_fraction:.1%}",
        f"{first.position_fraction:.1%}",
        f"{first.max_magnitude:.6g}",
        f"{first.critical_magnitude:.6g}",
    ]
    info = Reader(analyze.store_info(path)._repr_html_()).cells
    assert HOSTILE.replace("\x1b", " ").replace("\u202e", " ").replace("\n", " ") in info
    assert "a" * 500 + "…" in info
    assert Reader(Criteria(sequences=(0, 2), magnitude=7)._repr_html_()).cells.count("0, 2") == 1


def test_of_many_rows_the_first_are_shown() -> None:
    entries = [{"a": n, "b_fraction": 0.5, "token_text": HOSTILE} for n in range(1021)]
    markup = html.rows(entries, caption=HOSTILE)
    cells = Reader(markup).cells
    assert cells[:3] == ["a", "b fraction", "token text"]
    assert cells[3:5] == ["0", "50.0%"]
    assert len(cells) == 3 + 3 * 20
    assert "<p>and 1,001 more</p>" in markup
    assert html.rows([]) == ""
    assert "more" not in html.rows(entries[:20])
