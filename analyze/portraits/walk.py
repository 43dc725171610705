"""The walk through one sublayer: the stream that it reads, what is added, and the stream after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.peaks.counted import lengths
from analyze.peaks.stream import stream_matrices
from analyze.question.checks import within
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.types import Float32, Float64, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE, mantissa_bits

LAST_NORM = "last norm"
_ROWS, _SPAN = 3, 5


@dataclass(frozen=True)
class Walk(Shown):
    """One step of the residual stream: `before` + `contribution` = `after`.

    Parameters
    ----------
    sequence, layer, site : where the stream is read
    feature : the one whose persistence is shown
    positions, features : rows and columns of the matrices
    before, after : (position, feature) float32, the stream entering the norm of the site, and that of the next (the
        last norm after the last site), as the model computed them
    contribution : (position, feature) float64, the difference of the two
    next_site : where `after` is read, in words
    stream : (station, position) float32, the feature at every norm from the first to the last; coordinates `layer`
        (-1 at the last norm) and `site`
    unchanged : whether the next site reads the very same stream, as where both sublayers of a block read its input
    model : name of the model as captured; a stranger's text
    mantissa_bits : to which the values were rounded when the store was packed; None where they are exact
    """

    sequence: int
    layer: int
    site: str
    feature: int
    positions: tuple[int, ...]
    features: tuple[int, ...]
    before: Float32 = field(repr=False)
    contribution: Float64 = field(repr=False)
    after: Float32 = field(repr=False)
    next_site: str
    stream: xr.DataArray = field(repr=False)
    unchanged: bool
    model: str
    mantissa_bits: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers walk --json` prints: strict JSON, null for what is not a finite number."""
        names = ("sequence", "layer", "site", "feature", "positions", "features", "next_site", "unchanged")
        stations = zip(
            self.stream[LAYER].values.tolist(), self.stream[SITE].values.tolist(), self.stream.values, strict=True
        )
        rounded = {} if self.mantissa_bits is None else {"mantissa_bits": self.mantissa_bits}
        return {
            **{name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names},
            **{name: jsonable(getattr(self, name)) for name in ("before", "contribution", "after")},
            "stream": [
                {"layer": None if layer < 0 else layer, "site": site, "values": jsonable(values)}
                for layer, site, values in stations
            ],
            **rounded,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        rows = [
            ("stream", f"sequence {self.sequence}, from layer {self.layer}, {self.site}, to {self.next_site}"),
            ("feature", f"{self.feature}, positions {', '.join(map(str, self.positions))}"),
        ]
        if self.unchanged:
            rows.append(("unchanged", f"{self.next_site} reads the same stream: what both add shows there"))
        if self.mantissa_bits is not None:
            rows.append(("rounded", ROUNDED_NOTE.format(self.mantissa_bits)))
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """The feature at every norm, one record a norm; the last norm has no layer."""
        layers, sites = self.stream[LAYER].values.tolist(), self.stream[SITE].values.tolist()
        return [
            {
                "layer": "" if layer < 0 else str(layer),
                "site": site,
                **{f"position {p}": value for p, value in zip(self.positions, values, strict=True)},
            }
            for layer, site, values in zip(layers, sites, self.stream.values.tolist(), strict=True)
        ]

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The three matrices, then the feature at every norm."""
        columns = [f"feature {f}" for f in self.features]
        matrices: dict[str, Any] = {
            "the stream": self.before,
            "+ contribution": self.contribution,
            "= the stream after": self.after,
        }
        shown = [
            (title, [{"position": p, **dict(zip(columns, values, strict=True))}
                     for p, values in zip(self.positions, matrix.tolist(), strict=True)])
            for title, matrix in matrices.items()
        ]  # fmt: skip
        return [*shown, (f"feature {self.feature} at every norm", self.rows())]


def walk(
    store: Store,
    feature: int,
    *,
    sequence: int = 0,
    layer: int | None = None,
    site: str | None = None,
    positions: tuple[int, ...] | None = None,
    features: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> Walk:
    """Walk the residual stream through one sublayer, and follow a feature through all of them.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    feature : index into the hidden dimension
    sequence : whose stream
    layer, site : which sublayer, by the norm that it reads; what is None is chosen so that the feature's largest change
        at the positions is shown
    positions : rows of the matrices; the first three where None
    features : columns; five neighbours around the feature where None
    progress : called with (finished, all) steps

    Raises
    ------
    OutliersError
        The store keeps no norm inputs, or has no such place.

    Notes
    -----
    The contribution is the stream at the next norm less the stream at this one, in float64: exact where the exponents
    of the two values lie within 29 of each other (45 where the model computed in bfloat16). It is what the stream
    received. What the sublayer itself returned differs from it where the model scales or norms that before it adds it
    (Granite, Gemma 2, OLMo 2), and by the rounding of the sum to the model's dtype. Where both sublayers of a block
    read its input and there are two sites (GPT-NeoX), both are added after the second; where the model norms the
    stream itself after adding (the first OPT), the difference has that in it.
    """
    store = as_dataset(store)
    check_stream(store, "a walk")
    sizes = store.sizes
    feature = within(feature, sizes[FEATURE], FEATURE)
    sequence = within(sequence, sizes[SEQUENCE], SEQUENCE)
    sites = [str(label) for label in store[SITE].values]
    if layer is not None:
        layer = within(layer, sizes[LAYER], LAYER)
    if site is not None and site not in sites:
        raise OutliersError(f"site is {site!r}; the store has {', '.join(sites)}")
    end = int(lengths(store)[sequence])
    rows = _several(range(end)[:_ROWS] if positions is None else positions, end, POSITION)
    columns = _several(_around(feature, sizes[FEATURE]) if features is None else features, sizes[FEATURE], FEATURE)

    stream = _stream(store, sequence, feature, rows, progress)
    station = _station(stream, layer, site, sites)
    layer, site = station // len(sites), sites[station % len(sites)]
    here, there = (_matrix(store, sequence, place, len(sites)) for place in (station, station + 1))
    before, after = (matrix[np.ix_(rows, columns)] for matrix in (here, there))
    last = station + 1 == sizes[LAYER] * len(sites)
    following = divmod(station + 1, len(sites))
    with np.errstate(invalid="ignore"):
        contribution = after.astype(np.float64) - before.astype(np.float64)
    coordinates = {
        LAYER: ("station", [*np.repeat(np.arange(sizes[LAYER]), len(sites)), -1]),
        SITE: ("station", [*sites * sizes[LAYER], LAST_NORM]),
        POSITION: rows,
    }
    return Walk(
        sequence=sequence,
        layer=layer,
        site=site,
        feature=feature,
        positions=tuple(rows),
        features=tuple(columns),
        before=before,
        contribution=contribution,
        after=after,
        next_site=f"the {LAST_NORM}" if last else f"layer {following[0]}, {sites[following[1]]}",
        stream=xr.DataArray(stream, coordinates, ("station", POSITION), "stream"),
        unchanged=bool(np.array_equal(here, there, equal_nan=True)),
        model=str(store.attrs.get("model_id", "")),
        mantissa_bits=mantissa_bits(store.attrs),
    )


def check_stream(store: xr.Dataset, what: str) -> None:
    """Refuse a store that does not keep the residual stream, which `what` needs."""
    lacking = [name for name in ("norm_input", "final_input") if name not in store]
    if lacking:
        raise OutliersError(
            f"{what} needs the norm inputs themselves, and the store keeps no {' and no '.join(lacking)} "
            f"(--raw {store.attrs.get('raw')}); capture again with --raw input or both"
        )


def _several(values: Iterable[int], size: int, name: str) -> list[int]:
    chosen = [within(value, size, name) for value in values]
    if not chosen or len(set(chosen)) != len(chosen):
        raise OutliersError(f"{name}s is {','.join(map(str, chosen))!r}; expected one or more, each once")
    return chosen


def _around(feature: int, width: int) -> tuple[int, ...]:
    start = max(0, min(feature - _SPAN // 2, width - _SPAN))
    return tuple(range(start, min(start + _SPAN, width)))


def _stream(store: xr.Dataset, sequence: int, feature: int, positions: list[int], progress: Progress | None) -> Float32:
    """The feature at every norm, (station, position), the last norm at the end."""
    layers, sites = store.sizes[LAYER], store.sizes[SITE]
    stream = np.empty((layers * sites + 1, len(positions)), np.float32)
    view = View(sequences=(sequence,)).resolve(store)
    column = partial(_values, feature=feature, positions=positions)
    for _, layer, site, values in stream_matrices(store, view, column, progress):
        stream[layer * sites + site] = values
    final = store["final_input"].isel({SEQUENCE: sequence, FEATURE: feature})
    stream[-1] = loaded(final)[positions]
    return stream


def _values(matrix: Float32, feature: int, positions: list[int]) -> Float32:
    return matrix[positions, feature]


def _station(stream: Float32, layer: int | None, site: str | None, sites: list[str]) -> int:
    """Number of the norm before the largest change of the feature, among those asked for."""
    with np.errstate(invalid="ignore"):
        change = np.abs(np.diff(stream.astype(np.float64), axis=0))
    largest = np.fmax.reduce(change, axis=1)
    allowed = [
        place
        for place in range(len(largest))
        if (layer is None or place // len(sites) == layer) and (site is None or sites[place % len(sites)] == site)
    ]
    return max(allowed, key=lambda place: -math.inf if math.isnan(largest[place]) else largest[place])


def _matrix(store: xr.Dataset, sequence: int, station: int, sites: int) -> Float32:
    """The stream at one norm, (position, feature)."""
    if station == store.sizes[LAYER] * sites:
        return loaded(store["final_input"].isel({SEQUENCE: sequence}))
    place = {SEQUENCE: sequence, LAYER: station // sites, SITE: station % sites}
    return loaded(store["norm_input"].isel(place))
