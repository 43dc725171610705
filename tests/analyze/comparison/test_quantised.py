"""Perplexities under quantisers in a comparison: those of its view, kept beside each store."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, View, compare, quantize
from analyze.cli import main
from analyze.comparison.quantised import COLUMNS, TITLE
from analyze.comparison.result import as_text, public
from analyze.quantization.record import PLAIN
from tests import builders, records

pytestmark = pytest.mark.slow

LOSSES = {
    PLAIN: 2.0,
    "mxfp4|none|": 2.5,
    "int8-token|none|": 2.1,
    "int8-token|none|2.0": 2.05,
    "nvfp4|hadamard|": 800.0,
}


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """One that was run and quantised, one that was run alone, one that was neither."""
    paths = [
        builders.on_disk(tmp_path / f"{name}.zarr", builders.random_activations(seed=n), attributes={"model_id": name})
        for n, name in enumerate(("both", "run|alone", "neither"))
    ]
    for path in paths[:2]:
        records.predict(path, LOSSES)
    quantize(paths[0], ["int8-token", "mxfp4", "int4-token"], thresholds=[2])
    return paths


def test_every_number_is_that_of_quantize(stores: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, stores), "--resamples", "20", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["quantised"]
    assert [one["model"] for one in (first, second)] == ["both", "run|alone"]
    words = ["--scheme", "int8-token", "--scheme", "mxfp4", "--threshold", "2", "--json"]
    assert main(["quantize", str(stores[0]), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (first["perplexity"], first["rank_correlation"]) == (told["perplexity"], told["rank_correlation"])
    assert first["rank_correlation"]["schemes"] == 3
    expected = {(r["scheme"], r["threshold"]): r for r in told["rows"] if r["layer"] is None}
    for row in first["rows"][:3]:
        same = expected.pop((row["scheme"], row["threshold"]))
        assert row == {name: same[name] for name in row}
    assert not expected
    assert [row["scheme"] for row in first["rows"]] == ["int8-token", "int8-token", "mxfp4", "nvfp4"]
    assert first["rows"][3]["perplexity"] is None  # beyond every number
    assert second["rank_correlation"] is None
    assert [row["error"] for row in second["rows"]] == [None] * 4
    assert [row["perplexity"] for row in second["rows"]] == [row["perplexity"] for row in first["rows"]]


def test_it_is_told_in_text_and_in_files(stores: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare(stores, resamples=20)
    text = as_text(result)
    assert TITLE in text
    assert "both: Spearman's rank correlation of error and perplexity is 1.000 over 3 schemes, p = 0." in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("both ") and " mxfp4 " in line]
    assert float(line[-1]) == pytest.approx(np.exp(2.5), rel=1e-5)
    assert TITLE in str(result._repr_html_())
    monkeypatch.setattr("analyze.comparison.figures.write_figures", lambda *_: [])
    out = tmp_path / "out"
    assert main(["compare", *map(str, stores), "--resamples", "20", "--out", str(out)]) == 0
    assert json.loads((out / "quantised.json").read_text()) == {"stores": public(result).to_dict()["quantised"]}
    assert str(tmp_path) not in (out / "quantised.json").read_text() + (out / "quantised.csv").read_text()
    rows = list(csv.DictReader(io.StringIO((out / "quantised.csv").read_text())))
    assert tuple(rows[0]) == COLUMNS
    assert [row["model"] for row in rows] == ["both"] * 4 + ["run|alone"] * 4
    assert {float(row["perplexity_without"]) for row in rows} == {result.quantised[0].perplexity}
    page = (out / "quantised.md").read_text()
    assert r"run\|alone" in page
    assert page.count("\n|") == 2 + 10


def test_another_view_has_perplexities_of_its_own(stores: list[Path], tmp_path: Path) -> None:
    assert compare(stores, Criteria(sequences=(0, 1)), resamples=20).quantised == ()
    records.predict(stores[2], {PLAIN: 1.0, "mxfp4|none|": 1.5}, View(sequences=(0, 1)))
    (found,) = compare(stores, Criteria(sequences=(0, 1)), resamples=20).quantised
    assert (found.model, found.perplexity) == ("neither", pytest.approx(np.e))
    none = compare(stores[2:], resamples=20)
    assert none.to_dict()["quantised"] == []
    assert TITLE not in as_text(none)
