"""The text of tokens: shown where a store keeps it, and never interpreted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyze import OutliersError, extreme_tokens, layer_metrics, open_store
from analyze.cli import main
from analyze.reading.open import token_texts
from capture.store import write
from capture.store.create import create
from capture.store.schema import PER_SEQUENCE, RAW_VARIABLES, VARIABLES, Sizes
from tests import builders

TEXTS = {0: " the", 1: "\x1b[31m\n", 2: "[red]x[/red]", 3: "\u202eabc", 4: "", 5: "é\x7f"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    x = np.ones((1, 2, 2, 6, 4), np.float32)
    x[..., 2] += np.arange(6, 0, -1)  # the first token has the largest magnitude, the last the smallest
    arrays, place = builders.arrays_of(x), tmp_path / "s.zarr"
    create(
        place,
        Sizes(1, 2, builders.SITES, 6, 4),
        raw="both",
        attributes=builders.ATTRIBUTES,
        token_id=arrays["token_id"],
        norm_weight=arrays["norm_weight"],
        vocabulary=TEXTS,
    )
    names = (*RAW_VARIABLES["both"], *PER_SEQUENCE)
    write.write_sequence(
        place, 0, {name: np.take(arrays[name], 0, axis=VARIABLES[name].dims.index("sequence")) for name in names}
    )
    return place


def test_texts_stand_beside_their_tokens(path: Path) -> None:
    assert token_texts(open_store(path)) == TEXTS
    rows = extreme_tokens(path)
    assert [row["token_text"] for row in rows] == [TEXTS[row["token_id"]] for row in rows] == list(TEXTS.values())
    assert layer_metrics(path)["extreme_token_text"].values.tolist() == [[" the", " the"]] * 2


def test_a_store_without_texts_is_valid(path: Path, tmp_path: Path) -> None:
    plain = builders.on_disk(tmp_path / "plain.zarr", builders.random_activations())
    for data in (open_store(plain), builders.dataset(builders.random_activations())):
        assert token_texts(data) == {}
        assert "token_text" not in extreme_tokens(data)[0]
        assert "extreme_token_text" not in layer_metrics(data)
    assert token_texts(xr.open_zarr(path).drop_encoding()) == {}


def test_the_terminal_gets_no_control_characters_and_json_the_text(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", str(path), "--signal", "input"]) == 0
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    for text in ('" the"', r'"\u001b[31m\n"', '"[red]x[/red]"', '" abc"', '""', '"é "'):
        assert text in shown
    assert main(["metrics", str(path), "--signal", "input", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["token_text"] for row in result["extreme_tokens"]] == list(TEXTS.values())
    assert {row["extreme_token_text"] for row in result["layers"]} == {" the"}


@pytest.mark.parametrize("damage", ["chunk", "array", "bit"])
def test_damaged_texts_are_an_error(path: Path, damage: str) -> None:
    (file,) = (path / "vocabulary" / "text").glob("c*")
    if damage == "chunk":
        file.unlink()
    elif damage == "array":
        shutil.rmtree(path / "vocabulary" / "text")
    else:
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        file.write_bytes(data)
    with pytest.raises(OutliersError, match=r"vocabulary is damaged \(.*restore that folder from a copy, or remove it"):
        extreme_tokens(path)
    shutil.rmtree(path / "vocabulary")
    assert "token_text" not in extreme_tokens(path)[0]
