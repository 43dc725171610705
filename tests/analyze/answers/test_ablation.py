"""Records of ablations: read back as written, refused where damaged, and with the right figures."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze.answers.ablation import Ablation, read_ablation, read_ablations
from analyze.question.criteria import Criteria
from analyze.reading.open import fingerprint, open_store
from capture.errors import OutliersError
from capture.store.schema import ABLATION
from tests import builders


def made(**changes: Any) -> Ablation:
    """Two sequences, two layers of which the second has no softmax attention, four draws."""
    top1 = np.full((6, 2, 2), np.nan)
    top1[:, :, 0] = [[0.4, 0.6], [0.1, 0.2], [0.5, 0.5], [0.4, 0.6], [0.3, 0.5], [0.4, 0.4]]
    plain: dict[str, Any] = {
        "criteria": Criteria(magnitude=20, signal="output", sites=("ln_attn",)),
        "site": "ln_attn",
        "features": (1, 4),
        "random_features": ((0, 2), (2, 3), (0, 5), (3, 5)),
        "hidden_size": 6,
        "positions": 7,
        "seed": 3,
        "top1": top1,
        "next_top1": np.linspace(0.1, 0.9, 12).reshape(6, 2),
        "nll": np.log([[2, 8], [10, 1000], [4, 4], [4, 9], [4, 16], [4, 25]]),
        "attributes": {"model_id": "tökén \x1b[31m"},
    }
    return Ablation(**{**plain, **changes})


def keep(store: Path, ablation: Ablation, name: str = "0123456789abcdef.json") -> Path:
    (store / ABLATION).mkdir(parents=True, exist_ok=True)
    file = store / ABLATION / name
    file.write_bytes(ablation.dump().encode())
    return file


def test_the_row_is_as_worked_by_hand() -> None:
    row = made().row()
    assert row["top1_with"] == pytest.approx(0.5)
    assert row["top1_without"] == pytest.approx(0.15)
    assert row["top1_random"] == pytest.approx((0.5 + 0.5 + 0.4 + 0.4) / 4)
    assert row["top1_random_low"] == pytest.approx(0.4)
    assert row["top1_random_high"] == pytest.approx(0.5)
    assert row["perplexity"] == pytest.approx(4)  # of all tokens together: the geometric mean of 2 and 8
    assert row["perplexity_without"] == pytest.approx(100)
    draws = [4, 6, 8, 10]
    assert row["perplexity_random"] == pytest.approx(7)
    # Four draws lie at the quantiles 0, 1/3, 2/3 and 1.
    assert row["perplexity_random_low"] == pytest.approx(4 + 0.025 * 3 * 2)
    assert row["perplexity_random_high"] == pytest.approx(10 - 0.025 * 3 * 2)
    assert min(draws) < row["perplexity_random_low"] < row["perplexity_random_high"] < max(draws)
    assert row["next_top1"] == pytest.approx(np.linspace(0.1, 0.9, 12)[:2].mean())
    assert {"next_top1_without", "next_top1_random", "next_top1_random_low", "next_top1_random_high"} < set(row)


def test_without_softmax_attention_there_is_no_top1() -> None:
    ablation = made(top1=np.full((6, 2, 2), np.nan), site="ln_mlp")
    row = ablation.row()
    assert all(math.isnan(row[name]) for name in row if name.startswith("top1"))
    assert row["perplexity"] == pytest.approx(4)
    assert ablation.to_dict()["top1_with"] is None
    assert not any("attention top-1" in name for name, _ in ablation.summary())


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    ablation = made(nll=np.array([[0.1, 1 / 3], [math.nan, 1e-300], [5, 6], [7, 8], [1, 2], [3, 4]]))
    found = read_ablation(keep(tmp_path, ablation))
    for name in ("criteria", "site", "features", "random_features", "hidden_size", "positions", "seed", "attributes"):
        assert getattr(found, name) == getattr(ablation, name)
    for name in ("top1", "next_top1", "nll"):
        np.testing.assert_array_equal(getattr(found, name), getattr(ablation, name))
    assert found.dump() == ablation.dump()
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_summary_names_everything() -> None:
    text = str(made())
    for part in (
        "2 of 6: 1, 4",
        "2 x 7 tokens",
        "4 draws of 2 other features, seed 3",
        "50.00% with outliers",
        "15.00%",
    ):
        assert part in text
    many = str(made(features=tuple(range(40)), random_features=(tuple(range(40)),) * 4))
    assert "10, 11, ..." in many
    assert "12, 13" not in many


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = keep(tmp_path, made())
    whole = file.read_bytes()
    bits = np.random.default_rng(0).choice(8 * len(whole), 600, replace=False)
    for bit in (*bits.tolist(), *range(40), 8 * len(whole) - 1):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(OutliersError, match="is damaged or of a newer release") as caught:
            read_ablations(tmp_path)
        assert "\n" not in str(caught.value)
    for damaged in (whole[:-1], whole + b"\n", b"", b"[]", b"7", b"[" * 100_000, b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(OutliersError, match="is damaged or of a newer release"):
            read_ablations(tmp_path)


def forged(**changes: Any) -> bytes:
    """A record with other content and the checksum that belongs to it."""
    content = {**json.loads(made().dump()), **changes}
    content.pop("sha256")
    digest = sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, ensure_ascii=False, sort_keys=True, indent=1).encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "no record of outlier-features ablation"),
        ({"criteria": {"magnitude": -1}}, "magnitude is -1"),
        ({"criteria": {"colour": 1}}, "TypeError"),
        ({"criteria": None}, "TypeError"),
        ({"features": []}, "do not fit"),
        ({"features": [[1]]}, "TypeError"),
        ({"random_features": []}, "do not fit"),
        ({"random_features": [[0]] * 4}, "do not fit"),
        ({"site": "ln_attn_mlp"}, "do not fit"),
        ({"nll": [[1.0, 2.0]]}, "do not fit"),
        ({"nll": [[1.0], [1.0, 2.0]]}, "inhomogeneous"),
        ({"nll": "x"}, "could not convert"),
        ({"top1": []}, "do not fit"),
        ({"next_top1": [[1.0]] * 6}, "do not fit"),
        ({"attributes": 3}, "TypeError"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = keep(tmp_path, made())
    assert forged() == file.read_bytes()
    file.write_bytes(forged(**changes))
    with pytest.raises(OutliersError, match=reason):
        read_ablations(tmp_path)


def test_a_store_has_any_number_of_them_and_is_none_the_worse(tmp_path: Path) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    assert read_ablations(store) == []
    before = fingerprint(store)
    own = made(hidden_size=5, attributes={"store_id": open_store(store).attrs["store_id"]})
    keep(store, own, "b.json")
    keep(store, replace(own, features=(1,), random_features=((0,),) * 4), "c.json")
    keep(store, replace(own, site="both"), "a.json")
    (store / ABLATION / ".d.partial").write_text("half a rec")
    found = read_ablations(store)
    assert [(len(ablation.features), ablation.site) for ablation in found] == [
        (1, "ln_attn"),
        (2, "both"),
        (2, "ln_attn"),
    ]
    assert fingerprint(store) == before
    assert set(xr.open_zarr(store).data_vars) == set(open_store(store).data_vars)


@pytest.mark.parametrize("changes", [{}, {"attributes": {"store_id": "0" * 32}}, {"hidden_size": 8192}])
def test_a_record_of_another_store_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    own = {"attributes": {"store_id": open_store(store).attrs["store_id"]}} if "hidden_size" in changes else {}
    file = keep(store, made(**{"hidden_size": 5, **own, **changes}))
    with pytest.raises(OutliersError, match="is the record of another store") as caught:
        read_ablations(store)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_without_a_name_is_told_by_its_width(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "version-1.zarr"
    store = shutil.copytree(golden, tmp_path / "s.zarr")
    keep(store, made(hidden_size=5))
    assert len(read_ablations(store)) == 1
    keep(store, made())
    with pytest.raises(OutliersError, match="is the record of another store"):
        read_ablations(store)


def test_a_record_tells_its_store() -> None:
    assert "store_id" not in made().to_dict()
    assert made(attributes={"store_id": "5"}).to_dict()["store_id"] == "5"
