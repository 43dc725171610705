"""Where one feature is extreme: layers, positions, tokens, and its critical magnitude among all features."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE
from analyze.answers.find import critical_by_feature
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.peaks.lookup import view_peaks
from analyze.peaks.stream import stream_matrices
from analyze.portraits.origin import Origin, origin
from analyze.question.checks import within
from analyze.question.criteria import Criteria
from analyze.question.ranks import threshold
from analyze.question.units import scale_unit, scaled
from analyze.reading.activations import has_activations
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Float32, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE, mantissa_bits


@dataclass(frozen=True)
class Portrait(Shown):
    """One feature of a store.

    Parameters
    ----------
    feature, hidden_size : which feature, of how many
    criteria : fractions, layer unit and view; its counting is not used, both are given
    model : name of the model as captured; a stranger's text
    sequences : one row a sequence: `sequence`, `lowest`, `highest` (signed), `layer_fraction`, `position_fraction`
        (hits at the criterion's magnitude; NaN where no position counts), `critical_magnitude`, `rank` (1 is the
        largest critical magnitude of the sequence), `outlier`
    pooled_critical_magnitude, pooled_rank : the same with all sequences as one
    layers : (sequence, layer, site) `high` and `low`, float32: largest and smallest value over positions
    sequence : number of the sequence that `magnitudes` shows
    magnitudes : (layer, site, position) float32, magnitudes within that sequence
    exact : whether `magnitudes` are the values themselves; else the store keeps no activations, and they are the least
        upper bound that its peaks give, min(peak of the layer and site, peak of the position)
    tokens : those with the largest magnitudes, largest first: `sequence`, `position`, `token_id`, `magnitude`, and
        `token_text` where the store keeps it
    ranking : (feature,) float32, pooled critical magnitudes of all features, descending
    mantissa_bits : to which the store's activations were rounded when it was packed; None where they are exact
    origin : the sublayer that first writes the feature; None where it was not asked for
    """

    feature: int
    hidden_size: int
    criteria: Criteria
    model: str
    sequences: tuple[dict[str, Any], ...] = field(repr=False)
    pooled_critical_magnitude: float
    pooled_rank: int
    layers: xr.Dataset = field(repr=False)
    sequence: int
    magnitudes: xr.DataArray = field(repr=False)
    exact: bool
    tokens: tuple[dict[str, Any], ...] = field(repr=False)
    ranking: Float32 = field(repr=False)
    mantissa_bits: int | None = None
    origin: Origin | None = None

    @property
    def layer_rows(self) -> list[dict[str, Any]]:
        """Smallest and largest value over sequences: `layer`, `site`, `lowest`, `highest`."""
        low, high = (_over_sequences(self.layers[name].values, name) for name in ("low", "high"))
        labels = [str(site) for site in self.layers[SITE].values]
        return [
            {"layer": int(layer), "site": site, "lowest": float(low[i, j]), "highest": float(high[i, j])}
            for i, layer in enumerate(self.layers[LAYER].values)
            for j, site in enumerate(labels)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers show --json` prints: strict JSON; the map itself is in `magnitudes` only."""
        rounded = {} if self.mantissa_bits is None else {"mantissa_bits": self.mantissa_bits}
        return {
            "feature": self.feature,
            "hidden_size": self.hidden_size,
            "pooled": jsonable({"critical_magnitude": self.pooled_critical_magnitude, "rank": self.pooled_rank}),
            "sequences": jsonable(self.sequences),
            "layers": jsonable(self.layer_rows),
            "tokens": jsonable(self.tokens),
            "map": {"sequence": self.sequence, "exact": self.exact},
            "criteria": self.criteria.to_dict(),
            **rounded,
            **({} if self.origin is None else {"origin": self.origin.to_dict()}),
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        c = self.criteria
        found = sum(row["outlier"] for row in self.sequences)
        critical = [row["critical_magnitude"] for row in self.sequences]
        rows = [
            ("feature", f"{self.feature} of {self.hidden_size:,}"),
            ("criterion", str(replace(c, counting="per-sequence"))),
            ("outlier", f"in {found:,} of {len(critical):,} sequences"),
            ("critical |x|", f"{_span(critical)} by sequence, {self.pooled_critical_magnitude:.4g} pooled"),
            ("rank", f"{_span([row['rank'] for row in self.sequences])} by sequence, {self.pooled_rank:,} pooled"),
        ]
        strongest = max(self.layer_rows, key=lambda row: _magnitude(row))
        if not math.isnan(_magnitude(strongest)):
            value = max(strongest["lowest"], strongest["highest"], key=abs)
            rows.append(("extreme", f"{value:.4g} at layer {strongest['layer']}, {strongest['site']}"))
        if not self.exact:
            rows.append(("map", "upper bounds from peaks: the store keeps no activations for this view"))
        if self.mantissa_bits is not None:
            rows.append(("rounded", ROUNDED_NOTE.format(self.mantissa_bits)))
        return rows if self.origin is None else [*rows, *self.origin.summary()]

    def rows(self) -> list[dict[str, Any]]:
        """One record a sequence, as in `sequences`."""
        return list(self.sequences)

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """By sequence, by layer, the strongest tokens, and where the feature comes from."""
        return [
            ("by sequence", self.rows()),
            ("smallest and largest value over sequences and positions", self.layer_rows),
            ("tokens with the largest magnitudes", list(self.tokens)),
            *([] if self.origin is None else self.origin.tables()),
        ]


def portrait(
    store: Store,
    feature: int,
    criteria: Criteria | None = None,
    *,
    sequence: int | None = None,
    tokens: int = 10,
    with_origin: bool = False,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Portrait:
    """Where one feature is extreme.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    feature : index into the hidden dimension
    criteria : thresholds, layer unit and view; the defaults of `Criteria` where None
    sequence : whose layers and positions are mapped; the one with the feature's largest magnitude where None
    tokens : how many of the strongest tokens to list
    with_origin : follow the stream too, to the sublayer that first writes the feature (see `origin`)
    use_cache, progress : as in `view_peaks`

    Raises
    ------
    OutliersError
        No such feature or sequence, or a view that the store cannot serve.
    """
    store = as_dataset(store)
    criteria = (Criteria() if criteria is None else criteria).resolve(store)
    feature = within(feature, store.sizes[FEATURE], FEATURE)
    if tokens < 1:
        raise OutliersError(f"tokens is {tokens}; expected 1 or more")
    peaks = view_peaks(store, criteria, use_cache=use_cache, progress=progress)
    numbers = [int(n) for n in peaks[SEQUENCE].values]
    if sequence is not None and sequence not in numbers:
        within(sequence, store.sizes[SEQUENCE], SEQUENCE)
        raise OutliersError(f"sequence is {sequence}, which the view leaves out; choose one of its sequences")

    own = peaks.isel({FEATURE: feature})
    high, low, by_position = (loaded(own[name]) for name in ("layer_high", "layer_low", "position_peak"))
    by_layer = np.fmax(np.abs(high), np.abs(low))
    critical = critical_by_feature(peaks, replace(criteria, counting="per-sequence"))
    pooled = critical_by_feature(peaks, replace(criteria, counting="pooled"))[0]
    limit = threshold(criteria.magnitude)
    units = by_layer.reshape(len(numbers), -1) if criteria.layer_unit == "site" else np.fmax.reduce(by_layer, axis=2)
    counted = peaks["counted"].values.tolist()
    rows = tuple(
        {
            "sequence": n,
            "lowest": float(np.fmin.reduce(low[i], axis=None)),
            "highest": float(np.fmax.reduce(high[i], axis=None)),
            "layer_fraction": np.count_nonzero(units[i] >= limit) / units.shape[1],
            "position_fraction": np.count_nonzero(by_position[i] >= limit) / counted[i] if counted[i] else math.nan,
            "critical_magnitude": float(critical[i, feature]),
            "rank": _rank(critical[i], feature),
            "outlier": bool(critical[i, feature] >= limit),
        }
        for i, n in enumerate(numbers)
    )
    if sequence is None:
        strongest = np.fmax.reduce(by_position, axis=1)
        sequence = numbers[0 if np.isnan(strongest).all() else int(np.nanargmax(strongest))]
    dims = (LAYER, SITE, POSITION)
    exact = has_activations(store, criteria.signal)
    if exact:
        magnitudes = _magnitudes(store, criteria, sequence, feature, progress)
    else:
        at = numbers.index(sequence)
        magnitudes = np.minimum(by_layer[at][..., None], by_position[at])
    return Portrait(
        feature=feature,
        hidden_size=store.sizes[FEATURE],
        criteria=criteria,
        model=str(store.attrs.get("model_id", "")),
        sequences=rows,
        pooled_critical_magnitude=float(pooled[feature]),
        pooled_rank=_rank(pooled, feature),
        layers=xr.Dataset(
            {"high": ((SEQUENCE, LAYER, SITE), high), "low": ((SEQUENCE, LAYER, SITE), low)},
            {dim: peaks[dim] for dim in (SEQUENCE, LAYER, SITE)},
        ),
        sequence=sequence,
        magnitudes=xr.DataArray(magnitudes, {dim: peaks[dim] for dim in dims}, dims, "magnitude"),
        exact=exact,
        tokens=tuple(_tokens(store, criteria, peaks, by_position, tokens)),
        ranking=np.sort(pooled)[::-1],
        mantissa_bits=mantissa_bits(store.attrs),
        origin=origin(store, feature, criteria, progress=progress) if with_origin else None,
    )


def _rank(critical: Float32, feature: int) -> int:
    """1 for the largest; features that tie share a rank."""
    return 1 + int(np.count_nonzero(critical > critical[feature]))


def _magnitudes(
    store: xr.Dataset, criteria: Criteria, sequence: int, feature: int, progress: Progress | None
) -> Float32:
    """Magnitudes of one feature in one sequence, (layer, site, position), in the view's unit."""
    view = replace(criteria.view, sequences=(sequence,)).resolve(store)
    sizes = view.select(store[["position_peak", "layer_high"]]).sizes
    result = np.empty((sizes[LAYER], sizes[SITE], sizes[POSITION]), np.float32)
    column = partial(_column, feature=feature, scale=criteria.scale)
    for _, layer, site, values in stream_matrices(store, view, column, progress):
        result[layer, site] = values
    return result


def _column(matrix: Float32, feature: int, scale: str) -> Float32:
    unit = None if scale == "absolute" else scale_unit(matrix, scale)
    return scaled(np.abs(matrix[:, feature]), unit)


def _tokens(
    store: xr.Dataset, criteria: Criteria, peaks: xr.Dataset, by_position: Float32, count: int
) -> list[dict[str, Any]]:
    token_id = loaded(criteria.select(store[["token_id"]])["token_id"])
    texts = token_texts(store)
    flat = by_position.ravel()
    ranked = np.argsort(-np.nan_to_num(flat, nan=-np.inf, posinf=np.inf), kind="stable")[:count]
    result = []
    for place in ranked:
        n, p = divmod(int(place), by_position.shape[1])
        if np.isnan(flat[place]):
            continue
        row: dict[str, Any] = {
            "sequence": int(peaks[SEQUENCE].values[n]),
            "position": int(peaks[POSITION].values[p]),
            "token_id": int(token_id[n, p]),
        }
        if texts:
            row["token_text"] = texts.get(row["token_id"], "")
        result.append({**row, "magnitude": float(flat[place])})
    return result


def _over_sequences(values: npt.NDArray[np.float32], name: str) -> Float32:
    reduced: Float32 = (np.fmax if name == "high" else np.fmin).reduce(values, axis=0)
    return reduced


def _magnitude(row: dict[str, Any]) -> float:
    known = [abs(row[name]) for name in ("lowest", "highest") if not math.isnan(row[name])]
    return max(known, default=-math.inf)


def _span(values: list[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.4g}" if low == high else f"{low:,.4g} to {high:,.4g}"
