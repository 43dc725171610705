"""The panel "quantise" of a report: its numbers are those of `outliers fits` and `outliers quantize`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze import Criteria, OutliersError, View, fits, pack, quantize, write_report
from analyze.cli import main
from analyze.quantization import quantize as module_of
from analyze.quantization.record import PLAIN
from analyze.report.quantised import THRESHOLDS
from tests import builders, records
from tests.analyze.report.test_page import Driven
from tests.analyze.report.test_write import facts_of
from tests.browser import chromium

pytestmark = pytest.mark.slow

SCHEMES = ["int8-token", "int4-token", "mxfp4"]
KNOWN = [2, 3.3, 6]

READ = """
const value = (cell) => { const data = cell && cell.querySelector("data"); return data ? data.value : null; };
return [...document.querySelectorAll("#quantise-stores > section")].map((section) => ({
  kept: [...section.querySelectorAll("[data-figure]")].map((cell) => Number(value(cell))),
  place: (section.querySelector("small") || {}).textContent,
  heads: [...section.querySelectorAll("th")].map((cell) => cell.textContent),
  rows: [...section.querySelectorAll("tbody tr")].map((row) => [...row.cells].map(value)),
  commands: [...section.querySelectorAll("code span")].map((line) => line.textContent),
  text: section.textContent,
}));
"""


def spread(shape: tuple[int, ...], seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(3, shape)
    return (values * np.geomspace(0.2, 6, shape[-1])).astype(np.float32)


def made(folder: Path) -> list[Path]:
    """A store of sequences that end, one of another shape that was also run, and an archive of peaks alone."""
    first = builders.on_disk(folder / "l.zarr", spread((3, 4, 2, 9, 40), 0), length=np.array([9, 4, 6]))
    second = builders.on_disk(folder / "it's.zarr", spread((2, 3, 1, 7, 33), 1), spread((2, 3, 1, 7, 33), 2))
    third = builders.on_disk(folder / "p.zarr", spread((2, 2, 2, 5, 12), 3))
    records.predict(second, {PLAIN: 2.0, "int8-token|none|": 2.1, "mxfp4|none|": 2.2, "int8-token|none|6.0": 2.05})
    return [first, second, pack(third, folder / "p.zarr.zip", peaks_only=True)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = made(tmp_path_factory.mktemp("quantised"))
    for path in paths[:2]:
        quantize(path, SCHEMES, thresholds=KNOWN)
    return paths


@pytest.fixture(scope="module")
def page(stores: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    folder = tmp_path_factory.mktemp("panel")
    with chromium(folder / "profile") as driver:
        write_report(stores, folder / "report.html")
        yield Driven(driver, folder / "report.html")


def told(*words: str) -> Any:
    """What a command prints with --json."""
    text = StringIO()
    with redirect_stdout(text):
        assert main([*words, "--json"]) == 0
    return json.loads(text.getvalue())


def panels(page: Driven) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = page.script(READ)
    return shown


def test_every_number_is_that_of_the_command_line(page: Driven, stores: list[Path]) -> None:
    page.open()
    thresholds = page.script("return Answers.facts.thresholds")
    assert set(KNOWN) <= set(thresholds)
    assert len(thresholds) > 40
    met = set()
    for turn, threshold in enumerate([*KNOWN, *thresholds[:: len(thresholds) // 6], thresholds[-1]]):
        page.set(t=threshold, turn=turn)
        for path, panel in zip(stores, panels(page), strict=True):
            kept = told("fits", str(path), "--threshold", str(threshold))["kept_columns"]
            places = [row for row in kept if row["layer"] is not None]
            most = max(places, key=lambda row: row["kept_share"])
            shares = (kept[0]["kept_share"], most["kept_share"], most["layer"])
            assert panel["kept"] == pytest.approx(list(shares[:2]), rel=1e-13)
            assert panel["place"] == f"layer {most['layer']} {most['site']}"
            met.add(shares[0])
            expected = {} if path == stores[2] else answers(path, threshold)
            rows = [dict(zip(panel["heads"], row, strict=True)) for row in panel["rows"]]
            assert [(row["scheme"], number(row["threshold"])) for row in rows] == list(expected)
            for row, answer in zip(rows, expected.values(), strict=True):
                for head, name in (("bits", "bits"), ("error", "error"), ("kept", "kept_share")):
                    assert number(row[head]) == answer[name]
                if path == stores[1]:
                    assert number(row["perplexity"]) == answer["perplexity"]
                assert (number(row["worst"]), row["at layer"], row["at site"]) == answer["worst"]
    assert len(met) > 8
    assert 0 in met


def number(text: str | None) -> float | None:
    return None if text is None else float(text)


def answers(path: Path, threshold: float) -> dict[tuple[str, float | None], dict[str, Any]]:
    """Rows for all of `outliers quantize`, the least error first, each with its worst place."""
    limits = [str(threshold)] if threshold in KNOWN else []
    words = [word for name in SCHEMES for word in ("--scheme", name)]
    rows = told("quantize", str(path), *words, *(word for limit in limits for word in ("--threshold", limit)))["rows"]
    result = {}
    for row in sorted((row for row in rows if row["layer"] is None), key=lambda row: row["error"]):
        key = row["scheme"], row["threshold"]
        places = [r for r in rows if r["layer"] is not None and (r["scheme"], r["threshold"]) == key]
        most = max(places, key=lambda r: r["error"])
        result[key] = {**row, "worst": (most["error"], str(most["layer"]), most["site"])}
    return result


def test_what_is_not_known_is_said(page: Driven, stores: list[Path]) -> None:
    page.open(t=KNOWN[1])
    first, second, third = panels(page)
    assert "What schemes lose" not in first["text"] + second["text"]
    assert "The store keeps peaks alone" in third["text"]
    assert third["rows"] == []
    rank = told("quantize", str(stores[1]), "--scheme", "mxfp4", "--scheme", "int8-token", "--threshold", "6")
    assert "Perplexity 7.389 without a quantiser" in second["text"]
    assert f"{rank['rank_correlation']['spearman']:.3f} over 3 schemes" in second["text"]
    assert "perplexity" in second["heads"]
    assert "perplexity" not in first["heads"]


def test_a_known_threshold_is_a_click_away_and_the_address_keeps_it(page: Driven) -> None:
    page.open(t=1000)
    before = page.turn()
    page.script("document.querySelector('#quantise [data-jump=\"3.3\"]').click()")
    page.settle(before)
    assert page.settings()["t"] == "3.3"
    assert page.element("#threshold-number").get_attribute("value") == "3.3"
    page.script("document.getElementById('threshold').focus()")
    from selenium.webdriver.common.keys import Keys

    thresholds = page.script("return Answers.facts.thresholds")
    page.press(Keys.ARROW_RIGHT)
    assert float(page.settings()["t"]) == thresholds[thresholds.index(3.3) + 1]
    commands = panels(page)[1]["commands"]
    at = thresholds[thresholds.index(3.3) + 1]
    assert commands == [
        f"outliers fits 'it'\\''s.zarr' --threshold {at:g}",
        f"outliers quantize 'it'\\''s.zarr' --threshold {at:g}",
    ]
    for width in (360, 1280):
        page.resize(width, 800)
        assert page.script("return document.documentElement.scrollWidth") <= width
    assert page.script("return document.querySelectorAll('#quantise canvas').length") == 3
    assert page.driver.get_log("browser") == []


def quantised(path: Path, store: Any, *criteria: Criteria, **settings: Any) -> dict[str, Any]:
    write_report(store, path, *criteria, **settings)
    found: dict[str, Any] = facts_of(path)["stores"][0]["quantised"]
    return found


@pytest.fixture
def fresh(tmp_path: Path) -> list[Path]:
    """Stores of which nothing is in the cache."""
    return made(tmp_path)


def test_a_report_spends_no_pass_unless_it_is_asked_to(
    fresh: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = module_of.stream_places
    monkeypatch.setattr(module_of, "stream_places", lambda *_: pytest.fail("a pass"))
    about = quantised(tmp_path / "r.html", fresh[0])
    assert (about["rows"], about["columns"]) == ([], 3 * 40)
    assert "--quantize" in about["why_no_errors"]
    monkeypatch.setattr(module_of, "stream_places", stream)
    assert main(["report", str(fresh[0]), "--out", str(tmp_path / "r.html"), "--quantize"]) == 0
    rows = facts_of(tmp_path / "r.html")["stores"][0]["quantised"]["rows"]
    found = quantize(fresh[0], thresholds=THRESHOLDS)
    assert [row["error"] for row in rows] == [row["error"] for row in found.best_first()]
    assert {row["threshold"] for row in rows} == {None, *THRESHOLDS}
    with pytest.raises(OutliersError, match=r"quantize needs the norm outputs, .* capture with --raw"):
        write_report(fresh[2], tmp_path / "r.html", quantize=True)


def test_a_dataset_in_memory_is_quantised_where_that_is_asked(tmp_path: Path) -> None:
    data = builders.dataset(spread((2, 2, 2, 5, 16), 4))
    assert quantised(tmp_path / "r.html", data)["rows"] == []
    assert len(quantised(tmp_path / "r.html", data, quantize=True)["rows"]) > 12


def test_views_are_those_of_quantize(fresh: list[Path], tmp_path: Path) -> None:
    criteria = Criteria(skip_first=1, sites=("ln_mlp",), sequences=(0, 2))
    quantize(fresh[0], ["mxfp4"], view=criteria)
    quantize(fresh[0], ["nvfp4"], view=View(sequences=(0, 2)))
    about = quantised(tmp_path / "r.html", fresh[0], criteria)
    assert [row["scheme"] for row in about["rows"]] == ["mxfp4"]
    assert about["columns"] == 2 * 40
    # Rounded, scaled or without the outputs: the same columns where stored peaks tell, else the reason.
    for changes in ({"rounding": "bfloat16"}, {"scale": "rms"}):
        assert quantised(tmp_path / "r.html", fresh[0], Criteria(**changes))["columns"] == 3 * 40
        other = quantised(tmp_path / "r.html", fresh[0], Criteria(skip_first=2, **changes))
        assert other["columns"] is None
        assert "--quantize" in other["why_no_columns"]
    inputs = quantised(tmp_path / "r.html", fresh[0], Criteria(skip_first=2), signals=["input"])
    assert inputs["columns"] is None
    computed = quantised(tmp_path / "r.html", fresh[0], Criteria(skip_first=2), signals=["input"], quantize=True)
    assert computed["columns"] == 3 * 40


def test_thresholds_end_where_nothing_is_kept(fresh: list[Path], tmp_path: Path) -> None:
    write_report(fresh[2], tmp_path / "r.html")
    facts = facts_of(tmp_path / "r.html")
    largest = max(place.magnitude for place in fits(fresh[2]).places if place.signal == "output")
    assert facts["thresholds"][-2] <= largest < facts["thresholds"][-1]
    assert set(facts["thresholds"]) < set(facts["magnitudes"])
    assert facts["thresholds"][facts["opening"]["threshold"]] == pytest.approx(6, rel=0.5)
    write_report(builders.dataset(np.zeros((1, 1, 1, 1, 2))), tmp_path / "r.html", magnitudes=[0])
    assert facts_of(tmp_path / "r.html")["thresholds"] == []


def test_a_strangers_site_does_no_harm(tmp_path: Path) -> None:
    data: xr.Dataset = builders.dataset(spread((2, 2, 2, 5, 16), 4)).assign_coords(site=["</script>\x1b!", "b" * 999])
    rows = quantised(tmp_path / "r.html", data, quantize=True)["rows"]
    assert {row["at_site"] for row in rows} <= {"</script> !", "b" * 200}
