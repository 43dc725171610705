"""Which positions count: those that a sequence has, that a view does not skip, whose token it does not leave out.

Values at all others are NaN wherever peaks are taken, so that they never hit; what is left is to count by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.types import Counts
from capture.errors import OutliersError
from capture.store.schema import POSITION, SEQUENCE

Bools = npt.NDArray[np.bool_]


def lengths(store: xr.Dataset) -> Counts:
    """Valid positions of each sequence of a store: (sequence,) int64.

    Raises
    ------
    OutliersError
        A length is none that its sequence can have.
    """
    sequences, positions = store.sizes[SEQUENCE], store.sizes[POSITION]
    if "length" not in store:
        return np.full(sequences, positions, np.int64)
    length = loaded(store["length"]).astype(np.int64)
    for number in np.flatnonzero((length < 1) | (length > positions))[:1].tolist():
        raise OutliersError(
            f"length of sequence {number} is {length[number]}; expected 1 to {positions}: the store is damaged, or "
            "positions were cut off; choose them by skip_first"
        )
    return length


def within_length(store: xr.Dataset) -> Bools:
    """Whether each position is one that its sequence has: (sequence, position) bool, read-only."""
    if "length" not in store:
        return np.broadcast_to(np.True_, (store.sizes[SEQUENCE], store.sizes[POSITION]))  # takes no memory
    return np.asarray(np.arange(store.sizes[POSITION]) < lengths(store)[:, None])


def counted_positions(store: xr.Dataset, view: View) -> Bools:
    """Whether each position counts: (sequence, position) bool, of the view's sequences and behind its `skip_first`.

    Parameters
    ----------
    store : Dataset from `open_store`, or one that you chunked yourself
    view : which values count; resolved against the store

    Raises
    ------
    OutliersError
        As `lengths`.
    """
    counts = within_length(store)
    if view.skip_tokens:
        counts = counts & ~np.isin(loaded(store["token_id"]), view.skip_tokens)
    chosen: Bools = view.select(xr.Dataset({"counts": ((SEQUENCE, POSITION), counts)}))["counts"].values
    return chosen


def refuse_none(counts: Bools) -> None:
    """Refuse a view of which no position counts."""
    if not counts.any():
        raise OutliersError("the view leaves out every position of its sequences; skip fewer positions or tokens")
