"""Copies by xarray: the same values in every format that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from analyze import Criteria, OutliersError, find_outliers, open_store, portable
from tests import builders

pytestmark = pytest.mark.slow

ENCODED = ("shards", "chunks", "compressors", "serializer")
ATTRIBUTES = {"text_revision": None, "bos": True, "sites": [{"layer": 0, "feeds": ["a"]}], "versions": {"zarr": "3"}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations((3, 2, 2, 8, 6)), attributes=ATTRIBUTES)


def zarr(data: xr.Dataset, folder: Path) -> xr.Dataset:
    data.to_zarr(folder / "copy.zarr")
    return xr.open_zarr(folder / "copy.zarr")


def netcdf(data: xr.Dataset, folder: Path) -> xr.Dataset:
    data.to_netcdf(folder / "copy.nc")
    return xr.open_dataset(folder / "copy.nc")


@pytest.mark.parametrize("write", [zarr, netcdf])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"sequence": [1]},
        pytest.param({"layer": slice(1, 2)}, marks=pytest.mark.exhaustive),
        {"feature": slice(0, 6, 2)},
    ],
)
def test_a_copy_has_the_same_values(
    write: Callable[[xr.Dataset, Path], xr.Dataset], chosen: dict[str, object], store: Path, tmp_path: Path
) -> None:
    for opened in (open_store(store), xr.open_zarr(store)):
        part = opened.isel(chosen)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        copy = write(portable(part), folder).load()
        assert "digest" not in copy  # it binds values to the store that they lie in
        for name in set(part.data_vars) - {"digest"}:
            assert copy[name].dtype.kind == part[name].dtype.kind
            xr.testing.assert_equal(copy[name].drop_vars(copy[name].coords), part[name].drop_vars(part[name].coords))
        assert "text_revision" not in copy.attrs
        assert copy.attrs["bos"] == 1
        assert json.loads(copy.attrs["sites"]) == ATTRIBUTES["sites"]


@pytest.mark.parametrize("write", [zarr, netcdf])
def test_a_copy_can_be_asked(write: Callable[[xr.Dataset, Path], xr.Dataset], store: Path, tmp_path: Path) -> None:
    copy = write(portable(store), tmp_path)
    criteria = Criteria(magnitude=2)
    assert find_outliers(copy, criteria).to_dict() == find_outliers(store, criteria).to_dict()


def test_what_plain_xarray_refuses(store: Path, tmp_path: Path) -> None:
    """As `docs/opening.md` says."""
    opened = xr.open_zarr(store)
    for part in (opened, opened.isel(sequence=[0]), opened[["norm_input"]], opened[["position_peak"]]):
        with pytest.raises(ValueError, match="chunks"):
            part.to_zarr(tmp_path / "a.zarr", mode="w")
    with pytest.raises(TypeError, match="None"):
        opened.to_netcdf(tmp_path / "a.nc")


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "without its encoding": lambda store, path: xr.open_zarr(store).drop_encoding().to_zarr(path),
    "aligned": lambda store, path: xr.open_zarr(store).to_zarr(path, align_chunks=True),
    "without dask": lambda store, path: xr.open_zarr(store, chunks=None).to_zarr(path),
}


@pytest.mark.parametrize("way", COPIES)
def test_what_plain_xarray_copies(way: str, store: Path, tmp_path: Path) -> None:
    """As `docs/opening.md` says."""
    path = tmp_path / "copy.zarr"
    COPIES[way](store, path)
    opened, copy = xr.open_zarr(store), xr.open_zarr(path)
    encoded = [copy[name].encoding[word] == opened[name].encoding[word] for name in opened for word in ENCODED]
    assert all(encoded) == (way != "without its encoding")
    xr.testing.assert_identical(copy.load(), opened.load())
    assert copy.outliers.find(magnitude=2) == xr.open_zarr(store).outliers.find(magnitude=2)
    with pytest.raises(OutliersError, match=r"is no store|with xarray.open_zarr\(path\).outliers"):
        open_store(path)
