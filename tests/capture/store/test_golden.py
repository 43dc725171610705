"""A store that the first release wrote must be read by every later one, with the same answers.

The golden store was made once, on random data, by `python -m tests.capture.store.test_golden`;
it is never written again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyze.cli import main
from capture.store.create import create
from capture.store.schema import Sizes
from capture.store.verify import verify
from capture.store.write import StoreWriter, write_sequence

GOLDEN = Path(__file__).parents[2] / "golden" / "version-1.zarr"
ANSWERS = GOLDEN.with_suffix(".json")
SIZES = Sizes(sequences=3, layers=2, sites=("ln_attn", "ln_mlp"), positions=6, features=5)
QUESTIONS = (
    ["--magnitude", "3"],
    ["--magnitude", "3", "--signal", "output", "--counting", "pooled", "--layer-unit", "layer"],
    ["--magnitude", "2.5", "--skip-first", "1", "--scale", "rms"],
    ["--preset", "study", "--rounding", "none"],
)


def content(number: int) -> dict[str, np.ndarray]:
    """One sequence of heavy-tailed values with a NaN and an infinity."""
    rng = np.random.default_rng(number)
    shape = (SIZES.layers, len(SIZES.sites), SIZES.positions, SIZES.features)
    both = rng.standard_t(2, size=(2, *shape)).astype(np.float32)
    both[:, :, :, :, 3] += 6
    both[0, 0, 0, 0, 0] = np.nan
    both[1, 1, 1, 2, 4] = np.inf
    return {
        "norm_input": both[0],
        "norm_output": both[1],
        "final_input": rng.normal(size=shape[2:]).astype(np.float32),
        "layer_high": np.fmax.reduce(both, axis=3),
        "layer_low": np.fmin.reduce(both, axis=3),
        "position_peak": np.fmax.reduce(np.fmax.reduce(np.abs(both), axis=1), axis=1),
        "nonfinite_count": (~np.isfinite(both)).sum((3, 4)).astype(np.int32),
        "nll": np.concatenate([[np.nan], rng.exponential(size=SIZES.positions - 1)]).astype(np.float32),
    }


def test_the_golden_store_is_sound_and_holds_what_was_written() -> None:
    result = verify(GOLDEN)
    assert (result.damage, result.done) == ((), 3)
    dataset = xr.open_zarr(GOLDEN)
    for number in range(SIZES.sequences):
        for name, values in content(number).items():
            np.testing.assert_array_equal(dataset[name].isel(sequence=number), values, err_msg=name)


def test_the_golden_store_gives_the_same_answers_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(GOLDEN, tmp_path / "s.zarr")  # cached views must not go into the golden store
    for words, expected in zip(QUESTIONS, json.loads(ANSWERS.read_text()), strict=True):
        assert main(["find", str(copy), "--json", *words]) == 0
        answer = json.loads(capsys.readouterr().out)
        for name in ("count", "distinct_features", "mean_layer_fraction", "mean_position_fraction", "features"):
            assert answer[name] == expected[name], (words, name)


def test_a_capture_that_the_first_release_began_goes_on(tmp_path: Path) -> None:
    copy = shutil.copytree(GOLDEN, tmp_path / "s.zarr")
    StoreWriter(copy).mark_done(1, False)
    write_sequence(copy, 1, content(1))
    result = verify(copy)
    assert (result.damage, result.done) == ((), 3)
    xr.testing.assert_identical(xr.open_zarr(copy).load(), xr.open_zarr(GOLDEN).load())


if __name__ == "__main__":
    shape = (SIZES.layers, len(SIZES.sites), SIZES.features)
    create(
        GOLDEN,
        SIZES,
        raw="both",
        attributes={"model_id": "random numbers", "compute_dtype": "float32", "norm_kind": "rms", "norm_epsilon": 1e-6},
        token_id=np.arange(18, dtype=np.int32).reshape(3, 6),
        norm_weight=np.linspace(0.5, 1.5, np.prod(shape), dtype=np.float32).reshape(shape),
        norm_bias=np.linspace(-1, 1, np.prod(shape), dtype=np.float32).reshape(shape),
    )
    for sequence in range(SIZES.sequences):
        write_sequence(GOLDEN, sequence, content(sequence))
