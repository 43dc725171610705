"""How far a claim depends on the counting convention: one criterion under every convention."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import xarray as xr

from analyze.answers.find import find_outliers
from analyze.peaks.counted import counted_positions, lengths
from analyze.question.criteria import COUNTINGS, LAYER_UNITS, Criteria
from analyze.reading.activations import has_activations
from analyze.reading.open import as_dataset
from analyze.types import Progress, Store
from capture.store.schema import SIGNALS, SPECIAL_TOKENS


def all_conventions(
    store: Store, criteria: Criteria | None = None, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Count outliers under every signal, counting and layer unit, with and without the first token or special ones.

    Parameters
    ----------
    store, progress : as in `find_outliers`
    criteria : thresholds, and the rest of the view

    Returns
    -------
    rows of `signal`, `counting`, `layer_unit`, `skip_first`, `skip_tokens`, `count`, `distinct_features`, `saturated`,
    `mean_layer_fraction`, `mean_position_fraction`; without the first or without special tokens only where the store
    keeps the activations and other positions, and for the latter says which tokens are special and has any

    Raises
    ------
    OutliersError
        As `find_outliers`.
    """
    store = as_dataset(store)
    criteria = Criteria() if criteria is None else criteria
    rows = []
    for signal, one in itertools.product(SIGNALS, _left_out(store, criteria)):
        if one is not criteria and not has_activations(store, signal):
            continue
        skipped = {"skip_first": one.skip_first, "skip_tokens": one.skip_tokens}
        for counting, unit in itertools.product(COUNTINGS, LAYER_UNITS):
            settings: Any = {"signal": signal, "counting": counting, "layer_unit": unit, **skipped}
            found = find_outliers(store, replace(criteria, **settings), progress=progress)
            rows.append(
                {
                    **settings,
                    "skip_tokens": list(one.skip_tokens),
                    "count": found.count,
                    "distinct_features": found.distinct_features,
                    "saturated": found.saturated,
                    "mean_layer_fraction": found.mean_layer_fraction,
                    "mean_position_fraction": found.mean_position_fraction,
                }
            )
    return rows


def _left_out(store: xr.Dataset, criteria: Criteria) -> list[Criteria]:
    """The criterion as it is, without the first token, and without special tokens, where that changes what counts."""
    longest = int(lengths(store).max())
    others = [replace(criteria, skip_first=criteria.skip_first + 1)] if criteria.skip_first + 1 < longest else []
    if SPECIAL_TOKENS in store.attrs:
        others.append(replace(criteria, skip_tokens=(*criteria.skip_tokens, "special")))
    counted = counted_positions(store, criteria.resolve(store)).sum()
    return [criteria, *(one for one in others if 0 < counted_positions(store, one.resolve(store)).sum() < counted)]
