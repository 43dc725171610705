"""A format fits where NumPy's and torch's own casts keep every value finite; the first overflow is the model's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from analyze import Fits, fits, kept_figure, open_store
from analyze.cli import main
from analyze.quantization.columns import kept_shares
from analyze.quantization.formats import FLOATS, NumberFormat
from analyze.sharing.pack import pack
from tests import builders
from tests.conftest import tiny_llama, tiny_tokenizer

EDGES = {  # the largest number, and the smallest that is rounded beyond it
    "float16": (65504.0, 65520.0),
    "bfloat16": (3.3895313892515355e38, float(np.float32(3.3961775e38))),
    "float8_e4m3fn": (448.0, 464.00003),
    "float8_e5m2": (57344.0, 61440.0),
}


@pytest.mark.parametrize("name", EDGES)
def test_the_edge_of_a_format_is_half_a_step_beyond_its_largest_number(name: str) -> None:
    largest, over = EDGES[name]
    found = NumberFormat(name)
    assert found.largest == largest
    below = np.nextafter(np.float32(over), np.float32(0))
    assert found.overflows(np.array([0, 1, largest, below, over, np.inf, np.nan], np.float32)).tolist() == [
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("name", EDGES)
def test_torch_overflows_where_it_is_said(name: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = (2.0 ** rng.uniform(-10, 127.9, 20_000)).astype(np.float32)
    cast = torch.from_numpy(values).to(getattr(torch, name)).float().numpy()
    over = NumberFormat(name).overflows(values)
    # Some releases of torch saturate e4m3fn, which has no infinity, where others give NaN.
    assert not np.isfinite(cast[over & (cast != EDGES["float8_e4m3fn"][0])]).any()
    assert np.array_equal(cast[~over], values[~over].astype(FLOATS[name]).astype(np.float32))


def test_int8_holds_127_steps_and_what_is_rounded_to_them() -> None:
    found = NumberFormat("int8", 0.5)
    assert found.largest == 63.5
    assert found.overflows(np.array([63.5, 63.74, 63.75, 64], np.float32)).tolist() == [False, False, True, True]


@pytest.mark.parametrize(("magnitude", "power"), [(0.0, 1), (448.0, 1), (464.0, 1), (465.0, 2), (928.0, 2), (4e3, 16)])
def test_the_smallest_power_of_two(magnitude: float, power: float) -> None:
    assert NumberFormat("float8_e4m3fn").rescale(magnitude) == power


@pytest.mark.parametrize("magnitude", [math.inf, math.nan])
def test_no_power_mends_what_is_not_finite(magnitude: float) -> None:
    assert math.isnan(NumberFormat("float16").rescale(magnitude))


def spiked() -> np.ndarray:
    values = builders.random_activations()
    values[1, 2, 0, 3, 4] = -70_000  # the residual stream of the second sequence, before its third layer
    values[0, 3, 1, 2, 1] = 5e5
    return values


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", spiked())


def test_the_first_place_comes_in_the_order_in_which_the_model_computes(store: Path) -> None:
    found = fits(store)
    assert not found.fits
    assert found.to_dict()["first"] == {
        "layer": 2,
        "site": "ln_attn",
        "feature": 4,
        "signal": "input",
        "magnitude": 70_000.0,
    }
    assert found.rescale == 8  # 5e5 / 8 = 62,500
    over = [(place.signal, place.layer, place.site) for place in found.places if not place.fits]
    assert over == [  # outputs are halved; the model's last norm reads what the last sublayer did, and 1 more
        *(("input", 2, "ln_attn"), ("input", 3, "ln_mlp"), ("output", 3, "ln_mlp")),
        ("input", None, "final"),
    ]
    assert len(found.places) == 4 * 2 * 2 + 1
    assert fits(store, "bfloat16").fits
    assert fits(store, "bfloat16").rescale == 1


def test_peaks_alone_packed_or_not_give_the_same(store: Path, tmp_path: Path) -> None:
    alone = builders.on_disk(tmp_path / "peaks.zarr", spiked(), raw="none")
    archive = pack(store, tmp_path / "s.zarr.zip", peaks_only=True)
    assert fits(alone).to_dict() == fits(archive).to_dict() == fits(store).to_dict()


def test_values_that_are_no_numbers_fit_nowhere(tmp_path: Path) -> None:
    values = builders.random_activations()
    values[0, 1, 0, 0, 2] = np.nan
    values[0, 2, 0, 0, 3] = np.inf
    found = fits(builders.on_disk(tmp_path / "s.zarr", values), "bfloat16")
    assert found.first is not None
    assert (found.first.layer, found.first.site) == (1, "ln_attn")
    told = found.to_dict()
    assert told["rescale"] is None
    assert [row["magnitude"] for row in told["places"] if row["layer"] == 2 and row["site"] == "ln_attn"] == [None] * 2
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("name", FLOATS)
def test_every_place_against_a_plain_cast(store: Path, name: str) -> None:
    data = open_store(store)
    for place in fits(store, name).places:
        final = place.layer is None
        variable = data["final_input" if final else f"norm_{place.signal}"]
        values = variable.values if final else variable.sel(layer=place.layer, site=place.site).values
        with np.errstate(over="ignore"):
            assert place.fits == bool(np.isfinite(values.astype(FLOATS[name])).all())
        assert place.magnitude == np.abs(values).max()
        assert np.abs(values[..., place.feature]).max() == place.magnitude


def test_kept_columns_are_those_of_a_plain_loop(store: Path) -> None:
    data = open_store(store)
    values, limits = data["norm_output"].values, (0.5, 1.0, 1.7, 40.0)
    shares = kept_shares(data, limits)
    for place in np.ndindex(*shares.shape):
        t, layer, site = place
        kept = [
            any(abs(value) >= np.float32(limits[t]) for value in values[n, layer, site, :, f])
            for n in range(values.shape[0])
            for f in range(values.shape[4])
        ]
        assert shares.values[place] == pytest.approx(np.mean(kept), abs=1e-15)


def test_kept_columns_are_those_of_bitsandbytes() -> None:
    """Its rule: columns of the matrix with any |x| >= threshold (`get_colrow_absmax`, `igemmlt`'s outlier columns)."""
    values = builders.random_activations((1, 1, 1, 16, 64), seed=3)
    data = builders.dataset(values, values)
    found = kept_shares(data, (3.0,)).values[0, 0, 0]
    columns = {column for row in values[0, 0, 0] for column, value in enumerate(row) if abs(value) >= 3.0}
    assert found == len(columns) / 64


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "float64"], "format is 'float64'"),
        (["--format", "int8"], "format int8 needs a scale"),
        (["--format", "int8", "--scale", "-1"], "scale is -1.0"),
        (["--scale", "1"], "float16 has none"),
        (["--threshold", "0"], "threshold is 0"),
        (["--threshold", "x"], "threshold is 'x'"),
        (["--plot", "x.txt"], "suffix"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], told: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fits", str(store), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_the_command_prints_what_the_function_finds(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--threshold", "1:3:1", "--csv", str(tmp_path / "p.csv"), "--plot", str(tmp_path / "k.svg")]
    assert main(["fits", str(store), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fits(store, thresholds=(1, 2, 3)).to_dict()
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 17
    assert (tmp_path / "k.svg").stat().st_size > 1000
    assert main(["fits", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "first at layer 2 ln_attn, feature 4, 70,000" in printed
    assert "divided by 8" in printed


def test_the_figure_has_a_line_for_each_layer(store: Path) -> None:
    found: Fits = fits(store, thresholds=(1, 2, 4))
    lines = [line for axes in kept_figure(found.kept).axes[:2] for line in axes.get_lines()]
    assert len(lines) == 4 * 2
    assert np.array_equal(lines[0].get_ydata(), found.kept.values[:, 0, 0])


@pytest.mark.parametrize("layer", [0, 1])
def test_the_place_that_is_named_is_where_the_model_in_float16_has_its_first_value_that_is_not_finite(
    layer: int, tmp_path: Path, text_file: Path
) -> None:
    torch = pytest.importorskip("torch")
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    stores = {}
    for dtype in ("float32", "float16"):
        stores[dtype] = tmp_path / f"{dtype}.zarr"
        words = ["--text", str(text_file), "--sequences", "2", "--length", "16", "--dtype", dtype, "--raw", "none"]
        assert main(["capture", str(tmp_path / "model"), "--out", str(stores[dtype]), *words]) == 0
    counts = open_store(stores["float16"])["nonfinite_count"].sum("sequence").values
    order = [
        (signal, i, site)
        for i in range(3)
        for j, site in enumerate(("ln_attn", "ln_mlp"))
        for k, signal in enumerate(("input", "output"))
        if counts[k, i, j]
    ]
    first = fits(stores["float32"]).first
    assert first is not None
    assert (first.signal, first.layer, first.site) == order[0] == ("input", layer + 1, "ln_attn")
    assert math.isfinite(first.magnitude)
    assert fits(stores["float16"]).first is not None
    assert fits(stores["float16"]).first.site == first.site  # type: ignore[union-attr]
