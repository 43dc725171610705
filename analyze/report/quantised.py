"""What a report tells of quantisers: the columns that a threshold keeps, and what schemes lose where that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.display.text import jsonable, plain
from analyze.peaks.lookup import view_peaks
from analyze.quantization.columns import column_peaks_of, kept_columns
from analyze.quantization.quantize import answered, quantize
from analyze.quantization.result import Quantization
from analyze.quantization.variants import outputs_view
from analyze.question.criteria import Criteria
from analyze.reading.activations import has_activations
from analyze.report.levels import Counts, least_dtype
from analyze.types import Progress
from capture.store.schema import FEATURE

THRESHOLDS: Final = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Thresholds of LLM.int8() at which a report computes what schemes lose, where it is asked to."""
QUANTISED: Final = "quantised"
"""Name of these among the facts of a store."""
_LONGEST: Final = 200  # characters of the name of a site
_OTHER_VIEW: Final = (
    "Which columns a threshold keeps is told of norm outputs as they are, and this page holds other values; write it "
    "with both signals and without --scale and --rounding, or with --quantize."
)
_NO_ACTIVATIONS: Final = (
    "The store keeps peaks alone: they tell which columns a threshold keeps, not what schemes lose."
)
_NOT_ASKED: Final = (
    "What schemes lose is not in this page. It has whatever outliers quantize has found before it is written, and with "
    "--quantize it is found while it is."
)


@dataclass(frozen=True)
class Quantised:
    """What is known of one store.

    Parameters
    ----------
    peaks : of the view's norm outputs as they are; None where only a pass would tell
    sequences : number of those of which a position counts
    found : what schemes lose, and perplexities under them; None where nothing is known
    reason : why what schemes lose is not known
    """

    peaks: xr.Dataset | None
    sequences: int
    found: Quantization | None
    reason: str

    @classmethod
    def of(
        cls,
        store: xr.Dataset,
        criteria: Mapping[str, Criteria],
        peaks: Mapping[str, xr.Dataset],
        *,
        compute: bool,
        progress: Progress | None,
    ) -> Quantised:
        """What costs no pass; with `compute`, the default schemes as well.

        Parameters
        ----------
        store : Dataset from `open_store`
        criteria, peaks : of each signal that is embedded, resolved
        compute : spend a pass
        progress : called with (finished, all) steps

        Raises
        ------
        OutliersError
            As `quantize`, where it is to compute; a damaged or another store's record of perplexities.
        """
        view = outputs_view(next(iter(criteria.values())), store)
        computed = quantize(store, thresholds=THRESHOLDS, view=view, progress=progress) if compute else None
        # The cache has what was computed and more; but nothing may be kept of a Dataset in memory.
        answers = [one for one in (answered(store, view), computed) if one is not None]
        known: xr.Dataset | None = None
        if "output" in criteria and criteria["output"].view == view:
            known = peaks["output"]
        elif compute or view.plain:
            known = view_peaks(store, view, progress=progress)
        counted = next(iter(peaks.values()))["counted"].values
        reason = _NOT_ASKED if has_activations(store, "output") else _NO_ACTIVATIONS
        return cls(known, int(np.count_nonzero(counted)), max(answers, key=_errors, default=None), reason)

    @property
    def thresholds(self) -> set[float]:
        """Those of which it is known what a scheme loses."""
        rows = [] if self.found is None else self.found.rows_for_all
        return {row["threshold"] for row in rows} - {None}

    @cached_property
    def largest(self) -> float:
        """Largest finite magnitude; 0 where there is none, or it is not known."""
        parts = [] if self.peaks is None else [part[np.isfinite(part)] for part in column_peaks_of(self.peaks)]
        return float(max((part.max(initial=0) for part in parts), default=0))

    def kept(self, thresholds: Sequence[float]) -> Counts | None:
        """Number of columns that each threshold keeps, over all sequences: (threshold, layer, site)."""
        if self.peaks is None or not thresholds:
            return None
        counts = kept_columns(column_peaks_of(self.peaks), thresholds)
        return counts.astype(least_dtype(int(counts.max())))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the page is told; names of sites are a stranger's."""
        found = self.found
        about: dict[str, Any] = {
            "columns": None if self.peaks is None else self.sequences * self.peaks.sizes[FEATURE],
            "why_no_columns": _OTHER_VIEW if self.peaks is None else None,
            "why_no_errors": self.reason if found is None else None,
            "rows": [],
        }
        if found is not None:
            about |= {
                "measure": found.measure,
                "rows": [{**row, "at_site": plain(row["at_site"])[:_LONGEST]} for row in jsonable(found.best_first())],
                "left_out": found.left_out,
                "perplexity": jsonable(found.perplexity),
                "rank_correlation": jsonable(found.rank_correlation),
            }
        return about


def _errors(found: Quantization) -> int:
    """Number of places and variants of which it is known what is lost."""
    return int(found.table["error"].count())


def offered(stores: Sequence[Quantised], magnitudes: Sequence[float]) -> list[float]:
    """Thresholds that a page offers, ascending: those of which it is known what a scheme loses, and magnitudes.

    Of the page's magnitudes these are the ones that keep a column, and the first that keeps none.
    """
    known = {value for store in stores for value in store.thresholds}
    largest = max(store.largest for store in stores)
    above = [value for value in magnitudes if value > largest][:1]
    return sorted(known | {value for value in magnitudes if 0 < value <= largest} | set(above))
