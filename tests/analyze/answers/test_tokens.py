"""Tokens worth leaving out, against PrefixQuant's rule written out; conventions with and without special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze import Criteria, View, all_conventions, find_outliers, layer_metrics, outlier_tokens
from analyze.cli import main
from tests import builders

LENGTH = np.array([8, 6, 8], np.int32)
TOKENS = np.array([[1, 5, 9, 5, 2, 7, 5, 2], [1, 5, 2, 9, 5, 5, -1, -1], [1, 6, 6, 6, 2, 9, 6, 6]], np.int32)


def activations() -> np.ndarray:
    """Token 9 is huge at one site, the first position everywhere, token 2 once and only just."""
    x = np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 8, 40)).astype(np.float32)
    x[..., 7] = 1.0  # the largest magnitude of any ordinary token
    x[:, 1, 0][TOKENS == 9, 3] = -500
    x[..., 0, 4] = 1000
    x[0, 1, 1, 4, 5], x[2, 1, 1, 4, 5] = 64.5, 64.0
    return x


def store(special: Any = None) -> Any:
    data = builders.dataset(activations(), length=LENGTH)
    data["token_id"] = (("sequence", "position"), TOKENS)
    if special is not None:
        data.attrs["special_tokens"] = special
    return data


def test_outlier_tokens_are_those_of_the_rule() -> None:
    x = activations()
    expected: dict[int, list[tuple[int, int]]] = {}
    for n in range(3):
        for p in range(LENGTH[n]):
            for layer, site in np.ndindex(2, 2):
                most = np.abs(x[n, layer, site, : LENGTH[n]]).max(axis=1)
                if most[p] / np.median(most) > 64:
                    expected.setdefault(int(TOKENS[n, p]), []).append((n, p))
                    break
    assert set(expected) == {1, 2, 9}
    rows = outlier_tokens(store(), layer_metrics(store()))
    assert {row["token_id"]: row["positions"] for row in rows} == {t: len(places) for t, places in expected.items()}
    by_token = {row["token_id"]: row for row in rows}
    assert [row["token_id"] for row in rows] == [1, 9, 2]
    assert (by_token[1]["first"], by_token[9]["first"]) == (3, 0)
    assert (by_token[2]["of"], by_token[2]["ratio"]) == (4, 64.5)


def test_outlier_tokens_of_a_view_are_of_what_counts() -> None:
    view = View(skip_first=1, skip_tokens=(2,), sequences=(0, 2))
    (row,) = outlier_tokens(store(), layer_metrics(store(), view))
    assert (row["token_id"], row["positions"], row["of"], row["first"]) == (9, 2, 2, 0)


def test_metrics_names_them_with_the_options_that_leave_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = activations()
    x[:, 1, 1, 3, 5] = 200
    path = str(builders.on_disk(tmp_path / "s.zarr", x, x))  # tokens count on: each is another one
    assert main(["metrics", path, "--json", "--signal", "input"]) == 0
    rows = json.loads(capsys.readouterr().out)["outlier_tokens"]
    tokens = [row["token_id"] for row in rows if not row["first"]]
    assert len(tokens) == 6
    assert main(["metrics", path, "--signal", "input"]) == 0
    words = f"--skip-first 1 --skip-tokens {','.join(map(str, tokens))}"
    assert f"leave them out with: {words}" in capsys.readouterr().out
    assert main(["metrics", path, "--json", "--signal", "input", *words.split()]) == 0
    assert json.loads(capsys.readouterr().out)["outlier_tokens"] == []


def test_conventions_have_a_row_without_special_tokens_where_the_store_has_any() -> None:
    criteria = Criteria(magnitude=100, layers=0, positions=0.1)
    data = store({"bos": [1], "eos": [], "special": [1, 9]})
    rows = [row for row in all_conventions(data, criteria) if row["signal"] == "input"]
    kinds = [(row["skip_first"], row["skip_tokens"]) for row in rows]
    assert kinds == [(0, [])] * 4 + [(1, [])] * 4 + [(0, ["special"])] * 4
    for row in rows:
        asked = {name: row[name] for name in ("signal", "counting", "layer_unit", "skip_first", "skip_tokens")}
        found = find_outliers(data, Criteria(magnitude=100, layers=0, positions=0.1, **asked))
        assert row["count"] == found.count
    assert [rows[0]["count"], rows[4]["count"], rows[8]["count"]] == [6, 3, 0]
    for special in (None, {"bos": [], "eos": [], "special": [77]}, {"bos": [], "eos": [], "special": list(range(10))}):
        assert all(row["skip_tokens"] == [] for row in all_conventions(store(special), criteria))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bos", "the store does not say which tokens these are"),
        ("pad", "skip-tokens has 'pad'; expected token numbers, or bos, eos, special"),
        ("3,,4", "skip-tokens has ''"),
        ("-3", "skip-tokens has '-3'"),
    ],
)
def test_wrong_words_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    path = str(builders.on_disk(tmp_path / "s.zarr", activations()))
    assert main(["find", path, f"--skip-tokens={words}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_find_takes_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", activations())
    assert main(["find", str(path), "--skip-tokens", "8, 0,16", "--magnitude", "900", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["criteria"]["skip_tokens"] == [0, 8, 16]
    assert printed["count"] == 0 < find_outliers(path, Criteria(magnitude=900)).count
    assert main(["find", str(path), "--skip-tokens", "0,8,16"]) == 0
    assert "without the tokens 0, 8, 16" in " ".join(capsys.readouterr().out.split())
