"""How far a claim depends on the counting convention: one criterion under every convention."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from analyze.answers.find import find_outliers
from analyze.question.criteria import COUNTINGS, LAYER_UNITS, Criteria
from analyze.reading.activations import has_activations
from analyze.reading.open import as_dataset
from analyze.types import Progress, Store
from capture.store.schema import POSITION, SIGNALS


def all_conventions(
    store: Store, criteria: Criteria | None = None, *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Count outliers under every signal, counting and layer unit, with and without the first token.

    Parameters
    ----------
    store, progress : as in `find_outliers`
    criteria : thresholds, and the rest of the view

    Returns
    -------
    rows of `signal`, `counting`, `layer_unit`, `skip_first`, `count`, `distinct_features`, `saturated`,
    `mean_layer_fraction`, `mean_position_fraction`; without the first token only where the store keeps the activations
    and more than one position

    Raises
    ------
    OutliersError
        As `find_outliers`.
    """
    store = as_dataset(store)
    criteria = Criteria() if criteria is None else criteria
    rows = []
    for signal, extra in itertools.product(SIGNALS, (0, 1)):
        skip = criteria.skip_first + extra
        if extra and (not has_activations(store, signal) or skip >= store.sizes[POSITION]):
            continue
        for counting, unit in itertools.product(COUNTINGS, LAYER_UNITS):
            settings: Any = {"signal": signal, "counting": counting, "layer_unit": unit, "skip_first": skip}
            found = find_outliers(store, replace(criteria, **settings), progress=progress)
            rows.append(
                {
                    **settings,
                    "count": found.count,
                    "distinct_features": found.distinct_features,
                    "saturated": found.saturated,
                    "mean_layer_fraction": found.mean_layer_fraction,
                    "mean_position_fraction": found.mean_position_fraction,
                }
            )
    return rows
