"""Values of lazy arrays, without the cost of a scheduler where there is little to compute."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import is_dask_collection, optimize
from dask.core import flatten
from dask.local import get_sync
from dask.optimization import cull

from capture.store.schema import (
    FEATURE,
    SEQUENCE,
)


def loaded(array: xr.DataArray) -> npt.NDArray[Any]:
    """Values of a small array, read-only, computed by this thread; a scheduler would cost more than it brings."""
    # As a function: at the name of a scheduler dask imports all of dask.distributed, a second's work.
    if is_dask_collection(array.data) and array.data.npartitions == 1:
        # dask copies a result that is a single chunk, for fear of somebody's writing to it.
        (data,) = optimize(array.data)
        return _computed(data.__dask_graph__(), list(flatten(data.__dask_keys__())))[0]
    return np.asarray(array.compute(scheduler=get_sync).values)


def by_sequence(*arrays: xr.DataArray) -> Callable[[int, slice], list[npt.NDArray[Any]]]:
    """Values of some features, the last dimension, of the n-th sequence of several arrays, as from `loaded`.

    The function that gives them may be shared by threads.

    Where a sequence is one chunk of each, the graph is put in order once for all sequences; else for each.
    """
    if not all(_one_chunk_a_sequence(array) for array in arrays):
        return lambda n, features: [loaded(array.isel({SEQUENCE: n, FEATURE: features})) for array in arrays]
    lazy = optimize(*(array.data for array in arrays))
    graph = dict(itertools.chain.from_iterable(part.__dask_graph__().items() for part in lazy))
    keys = [list(flatten(part.__dask_keys__())) for part in lazy]

    def values(n: int, features: slice) -> list[npt.NDArray[Any]]:
        wanted = [blocks[n] for blocks in keys]
        return [found[0, ..., features] for found in _computed(cull(graph, wanted)[0], wanted)]

    return values


def _one_chunk_a_sequence(array: xr.DataArray) -> bool:
    expected = (array.shape[0], *(1 for _ in array.shape[1:]))
    return array.dims[0] == SEQUENCE and is_dask_collection(array.data) and array.data.numblocks == expected


def _computed(graph: Mapping[Any, Any], keys: list[Any]) -> list[npt.NDArray[Any]]:
    """Chunks of a graph that is in order, read-only."""
    results = [np.asarray(values).view() for values in get_sync(graph, keys)]
    for values in results:
        values.flags.writeable = False
    return results


def array_name(mark: str, name: str) -> str:
    """Dask name of a variable of the store with this fingerprint; a changed or sliced array has another name."""
    return f"outliers-{mark}-{name}"
