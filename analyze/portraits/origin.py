"""Where a feature comes from: the sublayer that first writes it, at which token, and how it fades."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE
from analyze.display.shown import Record, Shown
from analyze.display.text import jsonable
from analyze.peaks.counted import Bools, counted_positions, refuse_none
from analyze.peaks.stream import stream_matrices
from analyze.portraits.walk import LAST_NORM, check_stream
from analyze.question.checks import within
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Float32, Float64, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SITE, mantissa_bits

EMBEDDING: Final = "the embedding"
SUBLAYERS: Final = {"ln_attn": "attention", "ln_mlp": "feed-forward", "ln_block": "block"}
BOTH: Final = "attention and feed-forward"
SHARE: Final = 0.5
"""A sublayer writes a feature where it adds at least this share of the most that any sublayer adds."""


@dataclass(frozen=True)
class Origin(Shown):
    """The sublayer that first writes a feature.

    Parameters
    ----------
    feature : index into the hidden dimension
    sequences : one record a sequence, see Notes
    path : of the strongest row's position, one a norm from the first to the last: `layer` (None at the last), `site`,
        `value` (the stream there), `contribution` (what was added since the norm before; at the first the embedding)
    mantissa_bits : to which the values were rounded when the store was packed; None where they are exact

    Notes
    -----
    Keys of a record: `sequence`; `layer` and `site` of the norm that the writer reads (None for the embedding), and the
    `writer` in words; `position`, `token_id` and, where the store keeps it, `token_text`: where it writes most;
    `before` + `contribution` = `after`: the stream there; `positions`: at how many positions it writes at least half as
    much; `peak`: the largest magnitude from there on, at that position; `held_to`: the last norm at which half of the
    peak is left; `taken_by`: the sublayer that afterwards takes most away, None where none does; `last`: the value at
    the last norm.
    """

    feature: int
    sequences: tuple[Record, ...] = field(repr=False)
    path: tuple[Record, ...] = field(repr=False)
    mantissa_bits: int | None = None

    @property
    def strongest(self) -> Record:
        """The record with the largest contribution."""
        return max(self.sequences, key=lambda row: abs(row["contribution"]))

    def to_dict(self) -> dict[str, Any]:
        """The object `origin` of `outliers show --origin --json`: strict JSON."""
        return {
            **jsonable(self.strongest),
            "sequences": jsonable(self.sequences),
            "path": jsonable(self.path),
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        top = self.strongest
        alike = sum(row["writer"] == top["writer"] for row in self.sequences)
        token = f", {top['token_text']!r}" if "token_text" in top else ""
        fades = f"{top['last']:.6g} at the last norm"
        if top["taken_by"] is not None:
            fades += f"; {top['taken_by']} takes most away"
        rows = [
            ("written by", f"{top['writer']}, in {alike:,} of {len(self.sequences):,} sequences"),
            ("most at", f"sequence {top['sequence']}, position {top['position']} (token {top['token_id']}{token})"),
            ("contribution", f"{top['before']:.6g} + {top['contribution']:.6g} = {top['after']:.6g}"),
            ("positions", f"{top['positions']:,}, at which it writes half as much or more"),
            ("peak", f"{top['peak']:.6g}, of which half is left up to {top['held_to']}"),
            ("fades", fades),
        ]
        if self.mantissa_bits is not None:
            rows.append(("rounded", ROUNDED_NOTE.format(self.mantissa_bits)))
        return rows

    def rows(self) -> list[Record]:
        """One record a sequence."""
        return list(self.sequences)

    def tables(self) -> list[tuple[str, list[Record]]]:
        """Who writes the feature in each sequence, and its way through the model."""
        top = self.strongest
        path = [{**row, "layer": "" if row["layer"] is None else str(row["layer"])} for row in self.path]
        return [
            ("the sublayer that first writes it, by sequence", self.rows()),
            (f"sequence {top['sequence']}, position {top['position']}, norm by norm", path),
        ]


def origin(store: Store, feature: int, view: View | None = None, *, progress: Progress | None = None) -> Origin:
    """Find the sublayer that first writes a feature.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    feature : index into the hidden dimension
    view : whose sequences, and which positions and tokens of them do not count; nothing else of it is used
    progress : called with (finished, all) steps

    Raises
    ------
    OutliersError
        The store keeps no norm inputs, has no such place, or the feature is nowhere other than 0.

    Notes
    -----
    What a sublayer adds is the stream at the next norm less the stream at its own (see `walk` for what that holds
    beside what the sublayer returned). The writer is the first in the order of computation, the embedding included,
    which at any position makes the feature's magnitude grow by at least half of the most that any of them does.
    """
    store = as_dataset(store)
    check_stream(store, "an origin")
    feature = within(feature, store.sizes[FEATURE], FEATURE)
    view = View() if view is None else view
    view = View(sequences=view.sequences, skip_first=view.skip_first, skip_tokens=view.skip_tokens).resolve(store)
    counted = counted_positions(store, view)
    refuse_none(counted)
    streams, marks = _streams(store, view, feature, counted, progress)
    numbers = np.arange(store.sizes[SEQUENCE]) if view.sequences is None else np.asarray(view.sequences)
    told = counted.any(axis=1)  # a short sequence may be skipped whole
    names = _names(store, marks)
    tokens = loaded(store["token_id"])
    texts = token_texts(store)
    rows, writers = [], []
    for number, stream in zip(numbers[told], streams[told].astype(np.float64), strict=True):
        row, change, column = _traced(stream, names)
        position = column + view.skip_first
        place: Record = {"position": position, "token_id": int(tokens[number, position])}
        if texts:
            place["token_text"] = texts.get(place["token_id"], "")
        rows.append({"sequence": int(number), **names.place(change - 1), **place, **row})
        writers.append((abs(row["contribution"]), stream[:, column]))
    values = max(writers, key=lambda writer: writer[0])[1]
    with np.errstate(invalid="ignore"):
        added = np.diff(values, prepend=0.0)
    path = tuple(
        {**names.place(station), "value": float(value), "contribution": float(more)}
        for station, (value, more) in enumerate(zip(values, added, strict=True))
    )
    return Origin(feature, tuple(rows), path, mantissa_bits(store.attrs))


@dataclass(frozen=True)
class _Names:
    """What the norms, in the order of computation, and the sublayers that read them are called."""

    layers: int
    sites: tuple[str, ...]
    joint: tuple[bool, ...]

    def place(self, station: int) -> dict[str, Any]:
        """Layer and site of a norm; None for the layer of the last, for both of what is before the first."""
        if station < 0:
            return {"layer": None, "site": None}
        if station == self.layers * len(self.sites):
            return {"layer": None, "site": LAST_NORM}
        return {"layer": station // len(self.sites), "site": self.sites[station % len(self.sites)]}

    def norm(self, station: int) -> str:
        place = self.place(station)
        return f"the {LAST_NORM}" if place["layer"] is None else f"layer {place['layer']}, {place['site']}"

    def writer(self, change: int) -> str:
        """Who leads to the norm of this number."""
        if change == 0:
            return EMBEDDING
        layer, site = divmod(change - 1, len(self.sites))
        name = self.sites[site]
        both = self.joint[change - 1] or name == "ln_attn_mlp"
        return f"layer {layer}, {BOTH if both else SUBLAYERS.get(name, name)}"


def _names(store: xr.Dataset, marks: npt.NDArray[np.uint32]) -> _Names:
    sites = tuple(str(label) for label in store[SITE].values)
    # Where the norm before read the very same stream, both sublayers of the block add behind this one.
    joint = [
        station % len(sites) > 0 and np.array_equal(marks[:, station - 1], marks[:, station])
        for station in range(marks.shape[1])
    ]
    return _Names(store.sizes[LAYER], sites, tuple(joint))


def _traced(stream: Float64, names: _Names) -> tuple[dict[str, Any], int, int]:
    """What one sequence says: a part of its row, the number of the writing change, and where it writes most."""
    magnitudes = np.abs(stream)
    with np.errstate(invalid="ignore"):
        growth = np.diff(magnitudes, axis=0, prepend=0.0)
    growth = np.where(np.isfinite(growth), growth, -np.inf)
    most = growth.max()
    if not most > 0:
        raise OutliersError(
            "the feature is 0 or not a finite number at every norm, so that nothing writes it; choose another feature "
            "or other sequences"
        )
    change = int(np.argmax(growth.max(axis=1) >= SHARE * most))
    column = int(np.argmax(growth[change]))
    own, later = magnitudes[change:, column], growth[change + 1 :, column]
    later = np.where(np.isfinite(later), later, np.inf)
    peak = float(np.fmax.reduce(own))
    before = 0.0 if change == 0 else float(stream[change - 1, column])
    row = {
        "writer": names.writer(change),
        "before": before,
        "contribution": float(stream[change, column]) - before,
        "after": float(stream[change, column]),
        "positions": int(np.count_nonzero(growth[change] >= SHARE * growth[change, column])),
        "peak": peak,
        "held_to": names.norm(change + int(np.flatnonzero(own >= SHARE * peak)[-1])),
        "taken_by": names.writer(change + 1 + int(np.argmin(later))) if later.min(initial=0.0) < 0 else None,
        "last": float(stream[-1, column]),
    }
    return row, change, column


def _streams(
    store: xr.Dataset, view: View, feature: int, counted: Bools, progress: Progress | None
) -> tuple[Float32, npt.NDArray[np.uint32]]:
    """The feature at every norm, (sequence, station, position), the last one at the end, and what tells norms apart."""
    final = loaded(view.select(store[["final_input"]])["final_input"].isel({FEATURE: feature}))
    final = np.where(counted, final, np.float32(np.nan))
    sites = store.sizes[SITE]
    result = np.empty((len(final), store.sizes[LAYER] * sites + 1, final.shape[1]), np.float32)
    result[:, -1] = final
    marks = np.empty((len(final), store.sizes[LAYER] * sites), np.uint32)
    for n, layer, site, (values, mark) in stream_matrices(store, view, partial(_column, feature=feature), progress):
        result[n, layer * sites + site], marks[n, layer * sites + site] = values, mark
    return result, marks


def _column(matrix: Float32, feature: int) -> tuple[Float32, int]:
    """The feature, and a mark of the whole matrix."""
    return matrix[:, feature].copy(), zlib.crc32(np.ascontiguousarray(matrix).data)
