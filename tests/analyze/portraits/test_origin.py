"""Origins of features: planted writers, brute force over random streams, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import OutliersError, View, origin
from analyze.cli import main
from tests import builders

LAYERS, SITES, POSITIONS, FEATURES = 3, 2, 6, 4


def planted(*, embedding: float = 0.0) -> np.ndarray:
    """Feature 2: written by layer 1's feed-forward at position 3, half as much at 4, taken by layer 2's attention."""
    x = np.random.default_rng(0).uniform(-1, 1, (2, LAYERS, SITES, POSITIONS, FEATURES)).astype(np.float32)
    x[..., 2] = embedding
    x[:, 2, 0, 3, 2] = -500 + embedding
    x[:, 2, 0, 4, 2] = -250 + embedding
    x[1, 2, 0, 3, 2] -= 100
    return x


def test_a_planted_writer_is_found() -> None:
    found = origin(builders.dataset(planted()), 2)
    top = found.strongest
    assert {name: top[name] for name in ("sequence", "layer", "site", "writer", "position", "positions")} == {
        "sequence": 1, "layer": 1, "site": "ln_mlp", "writer": "layer 1, feed-forward", "position": 3, "positions": 1,
    }  # fmt: skip
    assert found.rows()[0]["positions"] == 2  # of 500, 250 is half
    assert (top["before"], top["contribution"], top["after"], top["peak"]) == (0, -600, -600, 600)
    assert (top["held_to"], top["taken_by"], top["last"]) == ("layer 2, ln_attn", "layer 2, attention", 1)
    assert top["token_id"] == POSITIONS + 3
    assert [row["value"] for row in found.path] == [0, 0, 0, 0, -600, 0, 1]
    assert [row["contribution"] for row in found.path] == [0, 0, 0, 0, -600, 600, 1]
    assert [(row["layer"], row["site"]) for row in found.path[-2:]] == [(2, "ln_mlp"), (None, "last norm")]


def test_a_feature_can_come_from_the_embedding() -> None:
    top = origin(builders.dataset(planted(embedding=400)), 2).strongest
    assert (top["writer"], top["layer"], top["before"], top["after"]) == ("the embedding", None, 0, 400)
    assert top["positions"] == POSITIONS


def test_sublayers_that_read_the_same_stream_write_together() -> None:
    x = planted()
    x[:, :, 1] = x[:, :, 0]  # as in GPT-NeoX
    assert origin(builders.dataset(x), 2).strongest["writer"] == "layer 1, attention and feed-forward"
    assert origin(builders.dataset(x[:, :, :1]), 2).strongest["writer"] == "layer 1, attention and feed-forward"


def test_a_sequence_that_is_skipped_whole_has_no_row() -> None:
    found = origin(builders.dataset(planted(), length=np.array([2, 6])), 2, View(skip_first=2))
    assert [row["sequence"] for row in found.rows()] == [1]
    assert found.strongest["contribution"] == -600
    with pytest.raises(OutliersError, match="leaves out every position"):
        origin(builders.dataset(planted(), length=np.array([2, 6])), 2, View(sequences=(0,), skip_first=2))


def test_positions_and_sequences_can_be_left_out() -> None:
    store = builders.dataset(planted())
    found = origin(store, 2, View(sequences=(0,), skip_first=4))
    assert len(found.rows()) == 1
    assert (found.strongest["position"], found.strongest["contribution"]) == (4, -250)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), holes=st.booleans())
def test_brute_force_agrees(seed: int, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(2, LAYERS, SITES, POSITIONS, 1)) * 10.0 ** rng.integers(-1, 3)).astype(np.float32)
    if holes:
        x[rng.random(x.shape) < 0.1] = np.nan
        x[:, 0, 0, 0] = 1
    store = builders.dataset(x)
    final = store["final_input"].values
    for n, row in enumerate(origin(store, 0).rows()):
        stations = [*x[n, ..., 0].reshape(-1, POSITIONS).astype(float), final[n, :, 0].astype(float)]
        growth = {}
        for number, station in enumerate(stations):
            for p in range(POSITIONS):
                before = 0.0 if number == 0 else stations[number - 1][p]
                grown = abs(station[p]) - abs(before)
                growth[number, p] = grown if np.isfinite(grown) else -np.inf
        most = max(growth.values())
        first = min(number for (number, _), grown in growth.items() if grown >= most / 2)
        position = max(range(POSITIONS), key=lambda p: growth[first, p])
        place = (None, None) if first == 0 else ((first - 1) // SITES, builders.SITES[(first - 1) % SITES])
        assert (row["layer"], row["site"], row["position"]) == (*place, position)
        assert row["after"] == stations[first][position]
        assert row["peak"] == np.nanmax(np.abs([station[position] for station in stations[first:]]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", planted())
    assert main(["show", str(path), "--feature", "2", "--origin"]) == 0
    told = capsys.readouterr().out
    assert "layer 1, feed-forward, in 2 of 2 sequences" in told
    assert "0 + -600 = -600" in told
    assert main(["show", str(path), "--feature", "2", "--origin", "--sequences", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["origin"]
    assert result["contribution"] == -500
    assert len(result["sequences"]) == 1
    assert main(["show", str(path), "--feature", "2", "--json"]) == 0
    assert "origin" not in json.loads(capsys.readouterr().out)
    assert "layer 1, feed-forward" in origin(path, 2)._repr_html_()


def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    x = planted()
    x[..., 1] = 0
    store = builders.dataset(x)
    store["final_input"][..., 1] = 0
    with pytest.raises(OutliersError, match="nothing writes it"):
        origin(store, 1)
    with pytest.raises(OutliersError, match="an origin needs the norm inputs themselves"):
        origin(builders.dataset(x, raw="none"), 2)
    with pytest.raises(OutliersError, match="feature is 9"):
        origin(store, 9)
