"""Memory taken again: never while somebody can still see it, and never without bound."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze import open_store
from analyze.peaks.buffers import _LEAST, _MOST, Buffers
from analyze.reading.lazy import loaded
from capture.store.schema import Sizes
from tests.benchmarks.table import SITES, made_up

SHAPE = (512, 1024)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_taken_again_when_the_last_view_is_gone() -> None:
    buffers = Buffers()
    array = buffers.empty(SHAPE, np.float32)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (
        SHAPE,
        np.float32,
        True,
        True,
    )
    place = address(array)
    view = array.view(np.uint32).T[::2, 3:][1:].reshape(-1, 1)[:0:-1]
    memory = memoryview(array[3])
    del array, view
    gc.collect()
    other = buffers.empty(SHAPE, np.float32)
    assert address(other) != place  # the memoryview still sees it
    del memory
    gc.collect()
    assert address(buffers.empty((2 * SHAPE[0], SHAPE[1]), np.int16)) == place


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_array_changes_under_anybody(data: st.DataObject) -> None:
    """Arrays that are held keep what was written into them, whatever is taken and dropped meanwhile."""
    buffers, held = Buffers(), []
    for number in range(data.draw(st.integers(1, 20))):
        array = buffers.empty((_LEAST // data.draw(st.sampled_from([1, 2, 4])), 2), np.uint8)
        array[...] = number
        part = data.draw(st.sampled_from([slice(None), slice(1, 5), slice(None, None, -7)]))
        held.append((number, array[part].T))
        if data.draw(st.booleans()):
            held.pop(data.draw(st.integers(0, len(held) - 1)))
    assert all((array == number).all() for number, array in held)


def test_what_is_kept_is_bounded() -> None:
    buffers = Buffers()
    arrays = [buffers.empty((_MOST // 4,), np.uint8) for _ in range(9)]
    del arrays
    gc.collect()
    assert sum(memory.nbytes for memory in buffers._idle) <= _MOST
    array = buffers.empty((_MOST + 1,), np.uint8)
    del array
    gc.collect()
    assert sum(memory.nbytes for memory in buffers._idle) <= _MOST


def test_small_arrays_are_numpys_own() -> None:
    assert Buffers().empty((3, 4), np.float32).base is None


def test_threads_never_share_memory() -> None:
    buffers, wrong = Buffers(), []

    def work(number: int) -> None:
        for _ in range(300):
            array = buffers.empty((_LEAST,), np.uint8)
            array[:: _LEAST // 64] = number
            if (array[:: _LEAST // 64] != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(buffers._idle) <= 4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose chunks are large enough to be read into memory that is taken again."""
    return made_up(tmp_path_factory.mktemp("large") / "s.zarr", Sizes(3, 1, SITES, 512, 1024), raw=False)


def test_peaks_that_are_held_survive_the_reading_of_others(large: Path) -> None:
    peaks = open_store(large)["position_peak"]
    held = [loaded(peaks[0, n]) for n in range(3)]
    copies = [values.copy() for values in held]
    for n in (2, 1, 0):
        loaded(peaks[1, n])
    assert all(np.array_equal(values, copy) for values, copy in zip(held, copies, strict=True))
    assert not np.array_equal(held[0], held[1])
