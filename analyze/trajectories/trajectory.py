"""Outliers over the checkpoints of one training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.answers.facts import nonfinite_count, perplexity
from analyze.answers.find import critical_by_feature
from analyze.comparison.bootstrap import STATISTICS, check_bootstrap, draws
from analyze.comparison.compare import counted, naming, perplexity_interval
from analyze.comparison.hits import read_hits
from analyze.comparison.result import RESAMPLES
from analyze.display.shown import Record, Shown
from analyze.display.text import jsonable, percent
from analyze.peaks.lookup import view_peaks
from analyze.question.checks import check_choice, check_magnitude
from analyze.question.criteria import Criteria
from analyze.trajectories.births import births, succession
from analyze.trajectories.checkpoints import BY, STEP, Checkpoint, checkpoints, lined_up
from analyze.trajectories.duplicates import Duplicate, duplicates
from analyze.types import Float32, Progress, Store
from capture.store.schema import FEATURE, SEQUENCE

_COUNTED: Final = (
    *(f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high")),
    *("distinct_features", "saturated"),
)


_SHOWN: Final = (
    *("step", "tokens", "count", "count_low", "count_high", "mean_layer_fraction", "mean_position_fraction"),
    *("perplexity", "distinct_features", "new", "gone", "strongest_feature"),
)


@dataclass(frozen=True)
class Trajectory(Shown):
    """Outliers over the checkpoints of one training run.

    Parameters
    ----------
    model : which run
    criteria : when a feature is an outlier
    by : `step` or `tokens`: the axis of figures
    hidden_size : width of the model
    checkpoints : one record each, ascending, see Notes
    critical : (step, feature) float32, critical magnitudes; counted by sequence, the largest over sequences
    duplicates : checkpoints whose norm weights are equal
    resamples, seed : of the bootstrap over sequences
    dataset : the stores lined up along `step`, lazily; nothing is copied

    Notes
    -----
    Keys of a record: `step`, `tokens` and `revision` (None where unknown), `store`; `count`, `mean_layer_fraction`,
    `mean_position_fraction` and `perplexity`, each with the ends of its 95% bootstrap interval (`count_low`,
    `count_high` ...; NaN of fewer than two sequences); `distinct_features`, `saturated`, `nonfinite_count`; and against
    the checkpoint before, how many features stay (`kept`), become (`new`) and cease to be outliers (`gone`);
    `strongest_feature` and `strongest_critical`: the feature with the largest critical magnitude.
    """

    model: str
    criteria: Criteria
    by: str
    hidden_size: int
    checkpoints: tuple[Record, ...] = field(repr=False)
    critical: xr.DataArray = field(repr=False)
    duplicates: tuple[Duplicate, ...]
    resamples: int
    seed: int
    dataset: xr.Dataset = field(repr=False)

    def births(self, magnitude: float | None = None) -> list[Record]:
        """When each feature becomes an outlier, at any magnitude.

        Parameters
        ----------
        magnitude : threshold; the criterion's where None

        Returns
        -------
        rows as from `analyze.trajectories.births.births`

        Raises
        ------
        OutliersError
            The magnitude is no finite number of 0 or more.
        """
        magnitude = self.criteria.magnitude if magnitude is None else magnitude
        check_magnitude(magnitude)
        return births(self.critical.values, [row["step"] for row in self.checkpoints], magnitude)

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers trajectory --json` prints: strict JSON."""
        return {
            "model": self.model,
            "criteria": self.criteria.to_dict(),
            "by": self.by,
            "hidden_size": self.hidden_size,
            "resamples": self.resamples,
            "seed": self.seed,
            "rows": jsonable(self.rows()),
            "births": jsonable(self.births()),
            "duplicates": [
                {
                    "steps": list(one.steps),
                    "revisions": list(one.revisions),
                    "same_losses": one.same_losses,
                }
                for one in self.duplicates
            ],
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        first, last = self.checkpoints[0], self.checkpoints[-1]
        loss = "unknown" if math.isnan(last["perplexity"]) else f"{last['perplexity']:.2f}"
        born = self.births()
        lasting = sum(row["lasting"] for row in born)
        rows = [
            ("model", self.model),
            ("criterion", str(self.criteria)),
            ("checkpoints", f"{len(self.checkpoints)}, steps {first['step']:,} to {last['step']:,}"),
            ("ever outliers", f"{len(born):,} of {self.hidden_size:,} features"),
            ("of these", f"{lasting:,} from their birth to the last checkpoint without a break"),
            ("at the end", f"{last['count']:,} outliers, L% {percent(last['mean_layer_fraction'])}, "
                           f"S% {percent(last['mean_position_fraction'])}, perplexity {loss}"),
        ]  # fmt: skip
        saturated = [f"{row['step']:,}" for row in self.checkpoints if row["saturated"]]
        if saturated:
            rows.append(("saturated", f"over half of the width qualifies at steps {', '.join(saturated)}"))
        broken = sum(row["nonfinite_count"] > 0 for row in self.checkpoints)
        if broken:
            rows.append(("not finite", f"{broken:,} checkpoints have NaN or infinite values; a NaN never hits"))
        return [*rows, *(("duplicate", str(one)) for one in self.duplicates)]

    def rows(self) -> list[Record]:
        """One record a checkpoint."""
        return list(self.checkpoints)

    def tables(self) -> list[tuple[str, list[Record]]]:
        """The checkpoints, without what is known of none, and when features become outliers."""
        known = [name for name in _SHOWN if any(row[name] is not None for row in self.checkpoints)]
        shown = [{name: row[name] for name in known} for row in self.checkpoints]
        return [
            ("by checkpoint, count with its 95% interval", shown),
            ("features, from when on they are outliers", self.births()),
        ]


def trajectory(
    stores: Sequence[Store],
    criteria: Criteria | None = None,
    *,
    by: str = STEP,
    steps: Sequence[int] | None = None,
    tokens_per_step: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Trajectory:
    """Follow outliers over the checkpoints of one training run.

    Parameters
    ----------
    stores : paths or Datasets, two or more, of one model at different steps, captured alike; in any order
    criteria : when a feature is an outlier; the defaults of `Criteria` where None
    by : `step`, or `tokens` where these are known of every store
    steps : of the stores, in their order; where None, what the name of the model's revision says, or the name of the
        folder that the model was loaded from
    tokens_per_step : tokens of a training batch; what the names say where None
    resamples, seed : of the bootstrap over sequences; all checkpoints share the sequences that are drawn
    use_cache, progress : as in `find_outliers`; progress tells of each store's pass

    Raises
    ------
    OutliersError
        Too few stores; one whose step or tokens nothing tells; two at the same step; stores of different models, runs,
        dtypes or texts; a store that cannot be read, or a view that it cannot serve.
    """
    criteria = Criteria() if criteria is None else criteria
    check_choice("by", by, BY)
    check_bootstrap(resamples, seed)
    placed = checkpoints(stores, by, steps=steps, tokens_per_step=tokens_per_step)
    rows, critical = [], []
    for one in placed:
        with naming(one.name):
            resolved = criteria.resolve(one.store)
            check_bootstrap(resamples, seed, one.store.sizes[SEQUENCE])
            row, values = _answered(one, resolved, (resamples, seed), use_cache, progress)
        rows.append(row)
        critical.append(values)
    together = np.stack(critical)
    rows = [row | follows for row, follows in zip(rows, succession(together, criteria.magnitude), strict=True)]
    places = {STEP: [one.step for one in placed], FEATURE: np.arange(together.shape[1])}
    return Trajectory(
        model=placed[0].run,
        criteria=resolved,
        by=by,
        hidden_size=together.shape[1],
        checkpoints=tuple(rows),
        critical=xr.DataArray(together, places, (STEP, FEATURE), "critical_magnitude"),
        duplicates=duplicates(placed),
        resamples=resamples,
        seed=seed,
        dataset=lined_up(placed),
    )


def _answered(
    one: Checkpoint, criteria: Criteria, randomness: tuple[int, int], use_cache: bool, progress: Progress | None
) -> tuple[Record, Float32]:
    """A checkpoint's row, without what follows from the one before, and its critical magnitudes, (feature,)."""
    (hits,) = read_hits(one.store, [criteria], use_cache=use_cache, progress=progress)
    weights = draws(hits.sequences, *randomness)
    low, high = perplexity_interval(one.store, criteria, weights)
    found = counted(hits, weights)
    row = {
        "step": one.step,
        "tokens": one.tokens,
        "revision": one.revision,
        "store": one.store.encoding.get("source"),
        **{name: found[name] for name in _COUNTED},
        "perplexity": perplexity(one.store, criteria),
        "perplexity_low": low,
        "perplexity_high": high,
        "nonfinite_count": nonfinite_count(one.store, criteria),
    }
    peaks = view_peaks(one.store, criteria, use_cache=use_cache)
    return row, critical_by_feature(peaks, criteria).max(axis=0)
