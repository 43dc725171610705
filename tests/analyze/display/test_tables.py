"""CSV files that a spreadsheet may open: a stranger's text in them is text."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from analyze.cli import main
from analyze.display.tables import csv_cell, write_csv
from tests import builders


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "  =1", "\t=1", "\r=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert csv_cell(text)[0] == "'"
    assert csv_cell("a=1") == "a=1"
    assert csv_cell(-1.5) == -1.5
    assert csv_cell(math.nan) == csv_cell(None) == ""


def test_every_file_of_rows_is_guarded(tmp_path: Path) -> None:
    rows = [{"=a": "=1", "b": -1, "c": [1, 2]}, {"=a": 'x,"y"\n', "b": math.nan, "c": []}]
    write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["'=a", "b", "c"], ["'=1", "-1", "1 2"], ['x,"y" ', "", ""]]


def test_sites_of_a_stranger_are_no_formulas_in_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = builders.dataset(builders.random_activations()).assign_coords(site=np.array(["=cmd()", "b"]))
    monkeypatch.setattr("analyze.reading.open.open_store", lambda _: data)
    assert main(["metrics", "store", "--csv", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert {row["site"] for row in csv.DictReader(file)} == {"'=cmd()", "b"}
