"""The accessor: what plain xarray opens gives the same answers, and what is no store is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import analyze
from analyze import Criteria, OutliersError, View
from tests import builders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = builders.random_activations((4, 3, 2, 6, 5))
    return builders.on_disk(tmp_path_factory.mktemp("accessor") / "s.zarr", x, attributes={"layers": 3})


@pytest.fixture(params=["open_zarr", "open_store"])
def store(request: pytest.FixtureRequest, path: Path) -> xr.Dataset:
    return xr.open_zarr(path) if request.param == "open_zarr" else analyze.open_store(path)


def test_every_method_is_its_function(store: xr.Dataset, path: Path) -> None:
    ask: Any = store.outliers
    settings = {"magnitude": 2, "sequences": (1, 3), "counting": "pooled", "skip_first": 1}
    assert ask.find() == analyze.find_outliers(path)
    found = ask.find(preset="study", sequences=(2, 3), magnitude=1)
    assert found == analyze.find_outliers(path, Criteria.preset("study", sequences=(2, 3), magnitude=1))
    assert {row.sequence for row in found.features} == {2, 3}
    assert ask.find(**settings) == analyze.find_outliers(path, Criteria(**settings))
    xr.testing.assert_identical(
        ask.critical_magnitudes(layers=0.5).drop_attrs(),
        analyze.critical_magnitudes(path, Criteria(layers=0.5)).drop_attrs(),
    )
    expected = analyze.sweep(path, Criteria(sequences=(0, 2)), [1, 2, 3], [0.5])
    assert ask.sweep(range(1, 4), 0.5, sequences=(0, 2)).rows() == expected.rows()
    view = {"signal": "output", "sites": ("ln_mlp",)}
    xr.testing.assert_equal(ask.metrics(**view), analyze.layer_metrics(path, View(**view)))
    assert ask.null(repeats=2, seed=3).to_dict() == analyze.permutation_null(path, repeats=2, seed=3).to_dict()
    assert ask.portrait(0, **settings).to_dict() == analyze.portrait(path, 0, Criteria(**settings)).to_dict()
    assert ask.map(top=2).to_dict() == analyze.feature_map(path, top=2).to_dict()
    assert ask.walk(1, sequence=2).to_dict() == analyze.walk(path, 1, sequence=2).to_dict()


@pytest.mark.parametrize("imports", ["import analyze, xarray as xr", "import xarray as xr; from analyze import View"])
def test_the_accessor_is_there_in_whatever_order(path: Path, imports: str) -> None:
    code = f"{imports}; print(xr.open_zarr({str(path)!r}).outliers.find(magnitude=6).count, xr.Dataset().outliers)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[0] == str(analyze.find_outliers(path).count)


@pytest.mark.parametrize("words", [["outliers.py"], ["-m", "package.outliers"]])
def test_the_accessor_is_there_whatever_a_script_is_called(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import analyze")
    for script in (tmp_path / "outliers.py", tmp_path / "package" / "outliers.py"):
        script.write_text("import analyze, xarray; xarray.Dataset.outliers")
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)


def test_a_dataset_in_memory_serves_too() -> None:
    data = builders.dataset(builders.random_activations())
    assert data.outliers.find(magnitude=3) == analyze.find_outliers(data, Criteria(magnitude=3))
    bare = data.drop_vars(["sequence", "layer", "position", "feature"])
    assert bare.outliers.find(sequences=(2,)) == data.outliers.find(sequences=(2,))
    assert bare.drop_vars(["norm_input", "norm_output", "final_input"]).outliers.find() == data.outliers.find()


def wrong(data: xr.Dataset) -> list[tuple[xr.Dataset, str]]:
    turned = data.assign(nll=data["nll"].transpose("position", "sequence"))
    wide = data.assign(position_peak=data["position_peak"].astype(np.float64))
    return [
        (xr.Dataset({"a": ("x", [1, 2])}), "this Dataset is no store of outlier-features"),
        (data.drop_attrs(), "this Dataset is no store of outlier-features"),
        (data.assign_attrs(format="other"), "this Dataset is no store of outlier-features"),
        (data.assign_attrs(format_version=True), "this Dataset is no store of outlier-features"),
        (data.assign_attrs(format_version=2), "format version 2, and this release reads up to 1"),
        (data.drop_vars(["layer_high", "nll"]), "has no variable layer_high, nll; expected a whole store"),
        (turned, r"nll is float32 \(position, sequence\); expected float32 \(sequence, position\)"),
        (wide, r"position_peak is float64 \(.*\); expected float32"),
        (data.drop_vars("site"), "lacks its coordinates signal and site"),
        (data.isel(signal=[1, 0]), "lacks its coordinates signal and site"),
        (data.isel(position=slice(3)).assign_coords(position=[0, 2, 4]), "has 3 of the 5 positions of its store"),
        (data.isel(position=slice(2, None)), "has 5 of the 7 positions of its store"),
        (data.isel(layer=[1, 0, 2, 3]), "has 4 of the 4 layers of its store, or not in their order"),
        (data.isel(layer=slice(2)), "has 2 of the 4 layers of its store"),
        (data.assign_attrs(hidden_size=9), "has 5 of the 9 features of its store"),
        (data.isel(sequence=slice(0)), "dimension sequence is empty"),
        (data.assign(done=data["done"] & (data["sequence"] < 1)), "unfinished, 1 of 3 sequences are done"),
    ]


def test_what_is_no_store_is_refused_in_one_line() -> None:
    data = builders.dataset(builders.random_activations()).assign_attrs(layers=4)
    data.outliers.find()
    for dataset, message in wrong(data):
        with pytest.raises(OutliersError, match=message):
            dataset.outliers.find()


def test_wrong_settings_are_refused() -> None:
    ask = builders.dataset(builders.random_activations()).outliers
    with pytest.raises(OutliersError, match="magnitude is -1; expected a finite number"):
        ask.find(magnitude=-1)
    with pytest.raises(OutliersError, match="preset is 'x'; expected one of study, dettmers"):
        ask.sweep(preset="x")
    with pytest.raises(OutliersError, match="magnitude is 'a'; expected a finite number"):
        ask.sweep("a")
    with pytest.raises(OutliersError, match="no layers to sweep over"):
        ask.sweep(layers=[])
    with pytest.raises(OutliersError, match="feature is 5; the store has features 0 to 4"):
        ask.portrait(5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'magnitud'"):
        ask.find(magnitud=6)


@pytest.mark.parametrize("part", [{"site": [0]}, {"site": [1]}, {"position": slice(1, None)}, {"position": [0, 1, 2]}])
def test_a_slice_that_nothing_numbers_is_refused(path: Path, part: dict[str, Any]) -> None:
    with pytest.raises(OutliersError, match="is a part of its store"):
        xr.open_zarr(path).isel(part).outliers.find()


def test_a_part_of_the_sequences_is_a_store_of_its_own(store: xr.Dataset) -> None:
    x = builders.random_activations((4, 3, 2, 6, 5))
    ask, alone = store.isel(sequence=[1, 3]).outliers, builders.dataset(x[[1, 3]])
    find: dict[str, Any] = {"magnitude": 2, "sequences": (1,)}
    assert ask.find(magnitude=2).features == analyze.find_outliers(alone, Criteria(magnitude=2)).features
    assert ask.find(**find).features == analyze.find_outliers(alone, Criteria(**find)).features
    found = ask.portrait(0)
    highest = np.abs(x[[1, 3], ..., 0]).max(axis=(1, 2, 3))
    assert found.sequence == highest.argmax()
    assert found.magnitudes.values.max() == found.tokens[0]["magnitude"] == highest.max()
    np.testing.assert_array_equal(ask.walk(0, sequence=1, layer=0, site="ln_mlp").before, x[3, 0, 1, :3])


def test_a_missing_file_is_an_error_only_where_open_store_opened(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(path, damaged)
    next((damaged / "position_peak").glob("c*")).unlink()
    xr.open_zarr(damaged).outliers.find()  # plain xarray does not notice
    with pytest.raises(OutliersError, match="position_peak is damaged"):
        analyze.open_store(damaged).outliers.find()
