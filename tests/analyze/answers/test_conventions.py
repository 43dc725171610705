"""One criterion under every convention."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, all_conventions
from analyze.cli import main
from tests import builders, strategies


def test_every_row_equals_the_definition() -> None:
    x = builders.random_activations()
    criterion = Criteria(magnitude=2, layers=0.4, positions=0.3)
    rows = all_conventions(builders.dataset(x, x[::-1] * 2), criterion)
    assert len(rows) == 16
    seen = set()
    for row in rows:
        settings = {name: row[name] for name in ("signal", "counting", "layer_unit", "skip_first")}
        seen.add(tuple(settings.values()))
        values = x if row["signal"] == "input" else x[::-1] * 2
        expected = strategies.oracle(values, Criteria(magnitude=2, layers=0.4, positions=0.3, **settings))
        assert row["count"] == len(expected)
        assert row["distinct_features"] == len({f for _, f in expected})
        assert row["mean_layer_fraction"] == pytest.approx(np.mean([value[0] for value in expected.values()]))
    assert len(seen) == 16


def test_without_activations_the_first_token_stays_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), raw="none")
    assert main(["find", str(path), "--all-conventions", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["skip_first"] for row in rows] == [0] * 8


def test_a_single_position_stays_in() -> None:
    rows = all_conventions(builders.dataset(builders.random_activations((2, 2, 2, 1, 3))))
    assert {row["skip_first"] for row in rows} == {0}


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    assert main(["find", str(path), "--all-conventions"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 18
    assert "per-sequence" in out
    assert "reading activations" in err
