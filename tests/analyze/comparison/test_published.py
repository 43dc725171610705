"""The published numbers: typed as printed, found from a checkout and from a wheel."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

from analyze import Criteria, OutliersError, published
from analyze.comparison import published as module

FOLDER = Path(__file__).parents[3] / "data" / "published"

# By hand: column as printed, column of the toolkit, factor.
NUMBERS = {
    "study_moe": [
        ("total_params_b", "total_parameters", "1e9"),
        ("active_params_b", "active_parameters", "1e9"),
        ("experts", "experts", "1"),
        ("shared_experts", "shared_experts", "1"),
        ("top_k", "top_k", "1"),
        ("outliers", "count", "1"),
        ("mean_layer_pct", "mean_layer_fraction", "0.01"),
        ("mean_position_pct", "mean_position_fraction", "0.01"),
    ],
    "study_dense": [
        ("total_params_b", "total_parameters", "1e9"),
        ("perplexity", "perplexity", "1"),
        ("outliers", "count", "1"),
        ("mean_layer_pct", "mean_layer_fraction", "0.01"),
        ("mean_position_pct", "mean_position_fraction", "0.01"),
    ],
    "dettmers2022_table4": [
        ("c4_perplexity", "perplexity", "1"),
        ("outliers", "count", "1"),
        ("one_sided", "one_sided", "1"),
        ("layers_pct", "mean_layer_fraction", "0.01"),
        ("positions_pct", "mean_position_fraction", "0.01"),
        ("q1", "first_quartile", "1"),
        ("median", "median", "1"),
        ("q3", "third_quartile", "1"),
        ("top1_with", "top1_with", "0.01"),
        ("top1_without", "top1_without", "0.01"),
    ],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_of_the_file(name: str) -> None:
    table = published(name)
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(table.rows()) == len(lines) > 0
    for row, line in zip(table.rows(), lines, strict=True):
        assert row["model"] == line["model"]
        for column, key, factor in NUMBERS[name]:
            assert row[key] == float(Decimal(line[column].rstrip("*")) * Decimal(factor)), (row["model"], key)
        assert len(row["doubtful"]) == sum(cell.endswith("*") for cell in line.values())
    assert [dict(line) for line in table.printed] == lines
    json.dumps(table.to_dict(), allow_nan=False)
    assert table.source
    assert table.notes


def test_what_the_publications_say() -> None:
    dense = published("study_dense")
    assert [row["count"] for row in dense.rows()] == [9212, 16563, 1042, 777, 985]
    assert dense.criteria == Criteria.preset("study")
    gpt_oss = published("study_moe").rows()[1]
    assert (gpt_oss["experts"], gpt_oss["top_k"], gpt_oss["doubtful"]) == (128, 4, ("experts", "top_k"))
    assert gpt_oss["total_parameters"] == 21_000_000_000
    assert [row["doubtful"] for row in published("study_moe").rows()].count(()) == 6
    table4 = published("dettmers2022_table4")
    assert table4.criteria == Criteria.preset("dettmers")
    assert [row["total_parameters"] for row in table4.rows()][:5] == [117e6, 345e6, 125e6, 762e6, 1.5e9]
    assert (table4.rows()[-1]["median"], table4.rows()[-1]["top1_without"]) == (-58, 0.16)


def test_whole_numbers_are_integers() -> None:
    for name in module.TABLES:
        for row in published(name).rows():
            for key in ("total_parameters", "active_parameters", "experts", "count", "one_sided"):
                assert isinstance(row.get(key, 0), int), (name, key)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(OutliersError, match="published table 'x' is unknown; expected one of study_moe, study_dense"):
        published("x")


def test_a_table_shows_itself_as_printed() -> None:
    shown = published("study_moe")._repr_html_()
    assert "128*" in shown
    assert re.search(r"<td[^>]*>Qwen3-30B</td>", shown)


def test_an_installed_copy_goes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("9212", "1"))
    monkeypatch.setattr(module, "_INSTALLED", tmp_path)
    assert published("study_dense").rows()[0]["count"] == 1
    monkeypatch.setattr(module, "_INSTALLED", tmp_path / "nowhere")
    assert published("study_dense").rows()[0]["count"] == 9212


def test_a_wheel_carries_the_tables_to_where_they_are_read() -> None:
    root = FOLDER.parents[1]
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert root / wheel["force-include"]["data/published"] == module._INSTALLED
