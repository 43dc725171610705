"""Stores beside each other, and beside what was published."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analyze.answers.ablation import Ablation, read_ablations
from analyze.answers.facts import losses, mean_fraction, nonfinite_count, perplexity
from analyze.answers.table4 import dettmers_table
from analyze.comparison.bootstrap import (
    UNKNOWN,
    check_bootstrap,
    draws,
    interval,
    intervals,
    per_sequence,
    pooled,
)
from analyze.comparison.cells import Row
from analyze.comparison.hits import Hits, position_peaks, read_hits
from analyze.comparison.published import TABLES, PublishedTable
from analyze.comparison.published import published as published_table
from analyze.comparison.quantised import Quantised, quantised
from analyze.comparison.result import ABLATED, RESAMPLES, Comparison, columns
from analyze.question.criteria import SATURATED, Criteria
from analyze.question.ranks import threshold
from analyze.reading.activations import has_activations
from analyze.reading.open import as_dataset
from analyze.types import Counts, Progress, Store
from capture.errors import OutliersError, without_passwords
from capture.store.paths import user_path
from capture.store.schema import SEQUENCE, mantissa_bits


def compare(
    stores: Sequence[Store],
    criteria: Criteria | None = None,
    *,
    published: bool = False,
    quartiles: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Set stores beside each other, and beside the published numbers.

    Each store's peaks are read once, its activations not at all where the view is plain.

    Parameters
    ----------
    stores : paths, or Datasets from `open_store` or that you chunked yourself; none only with `published`
    criteria : `Criteria.preset("study")` where None
    published : add the rows of the study and of Dettmers et al. 2022
    quartiles : read the activations too, for the quartiles of Table 4 and for Figure 4a as the paper defines it
    resamples, seed : of the bootstrap over sequences; the same seed gives the same intervals
    use_cache, progress : as in `view_peaks`

    Raises
    ------
    OutliersError
        No store, one given twice, one that cannot answer (`quartiles` need activations), or a record beside it that is
        damaged or another store's: then nothing is compared, and the line names it.
    """
    check_bootstrap(resamples, seed)
    criteria = Criteria.preset("study") if criteria is None else criteria
    if not stores and not published:
        raise OutliersError("no store to compare; expected one or more, or published numbers")
    if quartiles and criteria.scale != "absolute":
        raise OutliersError(
            f"scale is {criteria.scale!r}; quartiles are of the values themselves: expected absolute, or no quartiles"
        )
    found = opened(stores)
    study: list[Row] = []
    table4: list[Row] = []
    quantisers: list[Quantised] = []
    for name, store in found:
        with naming(name):
            _check(store, criteria, quartiles, resamples, seed)  # every store is asked before any of them is read
    labels = _labels(found)
    for label, (name, store) in zip(labels, found, strict=True):
        with naming(name):
            rows = _compared(store, criteria, quartiles, (resamples, seed), use_cache, progress)
            if (under := quantised(label, store, criteria)) is not None:
                quantisers.append(under)
        for table, row in zip((study, table4), rows, strict=True):
            table.append({**row, "model": label, "store": store.encoding.get("source")})
    tables = tuple(published_table(name) for name in TABLES) if published else ()
    for one in tables:
        (table4 if one.kind == "dettmers" else study).extend(_published(row, one) for row in one.models)
    return Comparison(
        criteria, _dettmers(criteria), resamples, seed, tuple(study), tuple(table4), tables, tuple(quantisers)
    )


def _dettmers(criteria: Criteria) -> Criteria:
    return replace(criteria, counting="pooled", layer_unit="layer", rounding="none")


def _check(store: xr.Dataset, criteria: Criteria, quartiles: bool, resamples: int, seed: int) -> None:
    """Refuse what a store cannot answer."""
    chosen = criteria.resolve(store).sequences
    check_bootstrap(resamples, seed, store.sizes[SEQUENCE] if chosen is None else len(chosen))
    if quartiles and not has_activations(store, criteria.signal):
        raise OutliersError(
            f"quartiles need the norm {criteria.signal}s themselves, and the store keeps no activations; capture again "
            f"with --raw {criteria.signal}, or compare without quartiles"
        )


def opened(stores: Sequence[Store]) -> list[tuple[str, xr.Dataset]]:
    """Open stores: names for error messages, and Datasets; one given twice is refused."""
    if isinstance(stores, str | Path | xr.Dataset):  # each is a sequence of a kind, and none of stores
        raise OutliersError("stores is a single store; expected a list of them")
    found: list[tuple[str, xr.Dataset]] = []
    seen: set[str | int] = set()
    for number, store in enumerate(stores):
        if isinstance(store, xr.Dataset):
            name = str(store.encoding.get("source", f"store {number + 1}"))
            key: str | int = id(store)
        else:
            name = without_passwords(str(store))
            path = user_path(name)
            key = str(path.resolve()) if path.exists() else name
        if key in seen:
            raise OutliersError(f"{name} is given twice; expected each store once")
        seen.add(key)
        with naming(name):
            found.append((name, as_dataset(store)))
    return found


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the store in whatever error it gives."""
    try:
        yield
    except OutliersError as error:
        if re.search(rf"(?<![^\s(]){re.escape(name)}(?![^\s:;,./)])", str(error)):
            raise
        raise OutliersError(f"{name}: {error}") from error


def _labels(found: list[tuple[str, xr.Dataset]]) -> list[str]:
    """Model ids; where two are alike, names of the folders; where these are alike too, whole paths."""
    choices = [
        [known_text(store.attrs.get("model_id")) or Path(name).stem, Path(name).name.removesuffix(".zarr"), name]
        for name, store in found
    ]
    labels = [chosen[0] for chosen in choices]
    for rank in (1, 2):
        repeated = {label for label in labels if labels.count(label) > 1}
        labels = [chosen[rank] if label in repeated else label for label, chosen in zip(labels, choices, strict=True)]
    return labels


def _compared(
    store: xr.Dataset,
    criteria: Criteria,
    quartiles: bool,
    randomness: tuple[int, int],
    use_cache: bool,
    progress: Progress | None,
) -> tuple[Row, Row]:
    """Row of the study's tables, and of Table 4."""
    both = [one.resolve(store) for one in (criteria, _dettmers(criteria))]
    hits, table4_hits = read_hits(store, both, use_cache=use_cache, progress=progress)
    weights = draws(hits.sequences, *randomness)
    facts = _facts(store, hits, weights)
    source = store.encoding.get("source")
    ablations = [] if source is None or not Path(source).is_dir() else read_ablations(source)
    rows = [
        {**facts, **counted(one, weights), **_ablated(one.criteria, ablations), "doubtful": []}
        for one in (hits, table4_hits)
    ]
    rows[1] |= _table4(store, table4_hits, quartiles, use_cache, progress)
    return _ordered(rows[0], table4=False), _ordered(rows[1], table4=True)


def _ordered(row: Row, *, table4: bool) -> Row:
    return {name: row.get(name) for name in columns(table4=table4)}


def _facts(store: xr.Dataset, hits: Hits, weights: Counts) -> Row:
    names = ("total_parameters", "active_parameters", "experts", "shared_experts", "top_k")
    dtype, quantised = (known_text(store.attrs.get(name)) for name in ("compute_dtype", "weight_quantisation"))
    low, high = perplexity_interval(store, hits.criteria, weights)
    return {
        **{name: _whole(store.attrs.get(name)) for name in names},
        "routing": known_text(store.attrs.get("routing")),
        "precision": dtype if quantised in (None, "none") or dtype is None else f"{dtype} ({quantised})",
        "text": known_text(store.attrs.get("text_source")),
        "sequences": hits.sequences,
        "positions": int(hits.positions.max()),
        "perplexity": perplexity(store, hits.criteria),
        "perplexity_low": low,
        "perplexity_high": high,
        "nonfinite_count": nonfinite_count(store, hits.criteria),
        "mantissa_bits": mantissa_bits(store.attrs),
    }


def _whole(value: Any) -> int | None:
    """A stranger's attribute as a whole number of 0 or more, of 64 bits; None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def known_text(value: Any) -> str | None:
    """A stranger's attribute as text; None where it is none, or empty."""
    return value if isinstance(value, str) and value else None


def perplexity_interval(store: xr.Dataset, criteria: Criteria, weights: Counts) -> tuple[float, float]:
    """Percentile interval of the perplexity over resampled sequences; `weights` as from `draws`."""
    each = losses(store, criteria.sequences)
    tokens = np.array([len(values) for values in each])
    if len(each) < 2 or not tokens.any():
        return UNKNOWN
    sums = np.array([values.sum() for values in each])
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return interval(np.exp((weights @ sums) / (weights @ tokens)))


def counted(hits: Hits, weights: Counts) -> Row:
    """What a criterion finds, with intervals over resampled sequences; `weights` as from `draws`."""
    outliers, layer_hits, position_hits = (per_sequence if _by_sequence(hits) else pooled)(hits)
    totals = hits.positions if _by_sequence(hits) else hits.positions.sum(keepdims=True)
    shares = (position_hits / np.maximum(totals, 1)[:, None])[outliers]
    by_sequence = zip(np.where(outliers, position_hits, 0).sum(axis=1).tolist(), totals.tolist(), strict=True)
    count, width = int(outliers.sum()), outliers.shape[1]
    distinct = int(outliers.any(axis=0).sum())
    row: Row = {
        "count": count,
        "mean_layer_fraction": mean_fraction([(int(layer_hits[outliers].sum()), hits.units)], count),
        "mean_position_fraction": mean_fraction(by_sequence, count),
        "median_layer_fraction": float(np.median(layer_hits[outliers])) / hits.units if count else math.nan,
        "median_position_fraction": float(np.median(shares)) if count else math.nan,
        "distinct_features": distinct,
        "hidden_size": width,
        "share": distinct / width,
        "saturated": distinct / width > SATURATED,
    }
    for name, (low, high) in intervals(hits, weights).items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    return row


def _by_sequence(hits: Hits) -> bool:
    return hits.criteria.counting == "per-sequence"


def _table4(store: xr.Dataset, hits: Hits, quartiles: bool, use_cache: bool, progress: Progress | None) -> Row:
    found = np.flatnonzero(pooled(hits)[0][0])
    row: Row = {"one_sided": 0, "median_magnitude": math.nan, "median_magnitude_of": None}
    if not found.size:
        return row
    both = np.logical_or.reduce(hits.above) & np.logical_or.reduce(hits.below)
    largest = int(found[np.argmax(np.fmax.reduce(hits.largest, axis=0)[found])])
    row |= {"one_sided": int(np.count_nonzero(~both[found])), "largest_feature": largest}
    if quartiles:
        exact = dettmers_table(store, hits.criteria, progress=progress)
        names = ("first_quartile", "median", "third_quartile")
        row |= dict(zip(names, exact.quartiles or (math.nan,) * 3, strict=True))
        return {**row, "median_magnitude": exact.largest_median, "median_magnitude_of": "hits"}
    peaks = hits.strong.get(largest)
    if peaks is None:
        peaks = position_peaks(store, hits.criteria, largest, use_cache=use_cache)
    hit = peaks[peaks >= threshold(hits.criteria.magnitude)]
    median = float(np.median(hit.astype(np.float64))) if hit.size else math.nan
    return {**row, "median_magnitude": median, "median_magnitude_of": "position peaks"}


def _ablated(criteria: Criteria, ablations: list[Ablation]) -> Row:
    """Figures of the causal test that was run with this criterion: before attention, as in the paper, where it was."""
    order = {"ln_attn": 0, "both": 1, "ln_mlp": 2}
    matching = [one for one in ablations if one.criteria == criteria]
    if not matching:
        return {}
    best = min(matching, key=lambda one: (order[one.site], -one.sequences, -one.repeats))
    row = best.row()
    return {name: row["perplexity" if name == "perplexity_with" else name] for name in ABLATED}


def _published(row: Row, table: PublishedTable) -> Row:
    result = {**row, "published": table.name, "doubtful": list(row["doubtful"])}
    if table.kind == "dense":
        result |= {"experts": 0, "active_parameters": row["total_parameters"]}
    if table.kind == "dettmers":
        result |= {"experts": 0, "median_magnitude": abs(row["median"]), "median_magnitude_of": "most common"}
    return _ordered(result, table4=table.kind == "dettmers")
