"""Opening a store: what it gives, and each refusal."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr

from analyze import Criteria, OutliersError, find_outliers, open_store, view_peaks
from analyze.question.view import View
from analyze.reading.arrays import StoredArray
from analyze.reading.open import fingerprint
from tests import builders


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


def reconsolidate(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata|Object at SHA256SUMS")
        zarr.consolidate_metadata(path)


def edit_array(path: Path, name: str, **changes: object) -> None:
    file = path / name / "zarr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    reconsolidate(path)


def test_a_store_opens_lazily_and_equal(path: Path) -> None:
    x = builders.random_activations()
    store = open_store(path)
    assert all(array.chunks is not None for array in store.data_vars.values())
    assert store["norm_input"].data.chunksize == (1, 1, 1, 7, 5)
    for name, values in builders.arrays_of(x).items():
        np.testing.assert_array_equal(store[name].values, values, err_msg=name)
    assert store.attrs["model_id"] == "test/model"
    assert list(store["site"].values) == ["ln_attn", "ln_mlp"]


@pytest.mark.parametrize(
    "key",
    [
        (2,),
        (slice(None), 1),
        (slice(2, 0, -1), slice(None), 1, slice(1, 7, 2)),
        (0, 0, 0, 0, 0),
        (slice(1, 1),),
        (Ellipsis, slice(None, None, -1)),
    ],
)
def test_any_selection_reads_what_numpy_would(path: Path, key: tuple) -> None:
    x = builders.random_activations()
    np.testing.assert_array_equal(open_store(path)["norm_input"].data[key].compute(), x[key])


def test_a_stored_array_travels_to_another_process(path: Path) -> None:
    array = pickle.loads(pickle.dumps(StoredArray(path, "nll", builders.SITES)))
    assert array[0:1].shape == (1, 7)


def test_a_missing_store(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match=r"no store at .*nope.*outliers capture"):
        open_store(tmp_path / "nope")


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="no Zarr v3 store"):
        open_store(tmp_path)


def test_another_zarr_store(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "z.zarr")
    with pytest.raises(OutliersError, match="not one of outlier-features"):
        open_store(tmp_path / "z.zarr")


def test_a_newer_format_version(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group.attrs["format_version"] = 2
    with pytest.raises(OutliersError, match="format version 2, and this release reads up to 1; upgrade"):
        open_store(path)


def test_an_unknown_raw(path: Path) -> None:
    zarr.open_group(path, mode="r+").attrs["raw"] = "some"
    with pytest.raises(OutliersError, match="raw is 'some'; expected one of input, output, both, none"):
        open_store(path)


def test_an_unfinished_capture(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), done=2)
    with pytest.raises(OutliersError, match="unfinished, 2 of 3 sequences are done; run the same outliers capture"):
        open_store(path)
    store = open_store(path, partial=True)
    assert store["done"].values.tolist() == [True, True, False]
    assert np.isfinite(store["layer_high"][:, :2].values).all()
    with pytest.raises(OutliersError, match=r"layer_high is damaged at .*sequence 2"):
        store["layer_high"][:, 2].compute()


def test_a_capture_that_has_not_begun(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), done=0)
    with pytest.raises(OutliersError, match="0 of 3 sequences are done"):
        open_store(path)


@pytest.mark.parametrize("name", ["layer_high", "norm_output", "token_id", "site"])
def test_a_missing_variable(path: Path, name: str) -> None:
    shutil.rmtree(path / name)
    reconsolidate(path)
    with pytest.raises(OutliersError, match=f"no variable {name}"):
        open_store(path)


def test_wrong_dimensions(path: Path) -> None:
    edit_array(path, "nll", dimension_names=["position", "sequence"])
    with pytest.raises(
        OutliersError, match=r"nll has dimensions \(position, sequence\); expected \(sequence, position\)"
    ):
        open_store(path)


def test_no_dimension_names(path: Path) -> None:
    edit_array(path, "nll", dimension_names=None)
    with pytest.raises(OutliersError, match="nll has no dimension names"):
        open_store(path)


def test_wrong_dtype(path: Path) -> None:
    edit_array(path, "nll", data_type="int32", fill_value=0)
    with pytest.raises(OutliersError, match="nll is int32; expected float32"):
        open_store(path)


def test_disagreeing_shapes(path: Path) -> None:
    edit_array(path, "done", shape=[4])
    with pytest.raises(OutliersError, match="done has 4 along sequence, other variables 3"):
        open_store(path)


def test_damaged_metadata(path: Path) -> None:
    (path / "zarr.json").write_text("{")
    with pytest.raises(OutliersError, match=r"metadata of .* are damaged"):
        open_store(path)


def test_a_flipped_bit_is_an_error_that_names_the_place(path: Path) -> None:
    file = path / "norm_input" / "c.1.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    store = open_store(path)
    with pytest.raises(OutliersError, match=r"norm_input is damaged at sequence 1, layer 0, site ln_attn .*checksum"):
        view_peaks(store, View(skip_first=1))
    np.testing.assert_array_equal(store["norm_input"][0].values, builders.random_activations()[0])


@pytest.mark.parametrize(
    ("name", "file"), [("layer_high", "c.0.2.0.0.0"), ("position_peak", "c.0.2.0.0"), ("nll", "c.2.0")]
)
def test_a_missing_file_is_an_error_and_never_fill_values(path: Path, name: str, file: str) -> None:
    (path / name / file).unlink()
    with pytest.raises(OutliersError, match=f"{name} is damaged at .*sequence 2.*is missing"):
        find_outliers(path)


def test_a_chunk_that_a_shard_lacks_is_an_error(path: Path) -> None:
    from capture.store.chunks import checksum

    file = path / "norm_input" / "c.2.0.0.0.0"
    data = file.read_bytes()
    size = 4 * 2 * 16
    index = np.frombuffer(data[-size - 4 : -4], "<u8").reshape(4, 2, 2).copy()
    index[3, 1] = np.iinfo(np.uint64).max
    file.write_bytes(data[: -size - 4] + index.tobytes() + checksum(index.tobytes()))
    assert np.isnan(zarr.open_array(path / "norm_input", mode="r")[2, 3, 1]).all()  # what zarr alone would read
    with pytest.raises(OutliersError, match="norm_input is damaged at sequence 2, layer 3, site ln_mlp"):
        find_outliers(path, Criteria(skip_first=1))


def test_a_shard_cut_short_is_an_error(path: Path) -> None:
    file = path / "layer_low" / "c.0.0.0.0.0"
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(OutliersError, match=r"layer_low is damaged at .*sequence 0.*cut short"):
        find_outliers(path)


def test_the_fingerprint_follows_every_file(path: Path) -> None:
    marks = {fingerprint(path)}
    for name in ("norm_input/c.1.0.0.0.0", "nll/c.0.0", "token_id/c.0.0"):
        file = path / name
        file.write_bytes(file.read_bytes())
        marks.add(fingerprint(path))
    zarr.open_group(path, mode="r+").attrs["model_id"] = "another"
    marks.add(fingerprint(path))
    assert len(marks) == 5
    assert fingerprint(path) in marks


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.reading.server.find_spec", lambda name: None)
    with pytest.raises(
        OutliersError, match=r"takes the extra remote; install it with: pip install 'outlier-features\["
    ):
        open_store("https://host/s.zarr")
