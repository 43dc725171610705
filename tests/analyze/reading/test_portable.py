"""Copies by xarray: the same values in every format that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

from analyze import Criteria, find_outliers, open_store, portable
from tests import builders

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
@pytest.mark.parametrize("chosen", [{}, {"sequence": [1]}, {"layer": slice(1, 2)}, {"feature": slice(0, 6, 2)}])
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


def test_what_plain_xarray_copies(store: Path, tmp_path: Path) -> None:
    """As `docs/opening.md` says."""
    opened = xr.open_zarr(store)
    with pytest.raises(ValueError, match="chunks"):
        opened.to_zarr(tmp_path / "a.zarr")
    xr.testing.assert_identical(zarr(opened.drop_encoding(), tmp_path).load(), opened.load())
