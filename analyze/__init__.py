"""Outlier-feature questions answered from a captured store, on a CPU, without torch.

>>> import analyze
>>> store = analyze.open_store("smollm2.zarr")  # doctest: +SKIP
>>> analyze.find_outliers(store, analyze.Criteria.preset("study"))  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyze.answers.ablation import Ablation as Ablation
    from analyze.answers.ablation import read_ablations as read_ablations
    from analyze.answers.conventions import all_conventions as all_conventions
    from analyze.answers.find import Outlier as Outlier
    from analyze.answers.find import Outliers as Outliers
    from analyze.answers.find import critical_magnitudes as critical_magnitudes
    from analyze.answers.find import find_outliers as find_outliers
    from analyze.answers.info import Info as Info
    from analyze.answers.info import store_info as store_info
    from analyze.answers.metrics import extreme_tokens as extreme_tokens
    from analyze.answers.metrics import layer_metrics as layer_metrics
    from analyze.answers.null import Null as Null
    from analyze.answers.null import permutation_null as permutation_null
    from analyze.answers.sweep import Sweep as Sweep
    from analyze.answers.sweep import sweep as sweep
    from analyze.answers.sweep_figure import sweep_figure as sweep_figure
    from analyze.answers.table4 import DettmersTable as DettmersTable
    from analyze.answers.table4 import dettmers_table as dettmers_table
    from analyze.comparison.compare import compare as compare
    from analyze.comparison.published import PublishedTable as PublishedTable
    from analyze.comparison.published import published as published
    from analyze.comparison.result import Comparison as Comparison
    from analyze.peaks.lookup import view_peaks as view_peaks
    from analyze.peaks.scheduler import scheduler as scheduler
    from analyze.portraits.figures import map_figure as map_figure
    from analyze.portraits.figures import portrait_figure as portrait_figure
    from analyze.portraits.map import FeatureMap as FeatureMap
    from analyze.portraits.map import feature_map as feature_map
    from analyze.portraits.portrait import Portrait as Portrait
    from analyze.portraits.portrait import portrait as portrait
    from analyze.portraits.walk import Walk as Walk
    from analyze.portraits.walk import walk as walk
    from analyze.portraits.walk_figure import walk_figure as walk_figure
    from analyze.question.criteria import Criteria as Criteria
    from analyze.question.view import View as View
    from analyze.reading.activations import activations as activations
    from analyze.reading.open import open_store as open_store
    from analyze.report.write import Report as Report
    from analyze.report.write import write_report as write_report
    from analyze.sharing.pack import pack as pack
    from analyze.sharing.push import push as push
    from analyze.sharing.unpack import unpack as unpack
    from analyze.transitions.figures import transition_figure as transition_figure
    from analyze.transitions.figures import transition_grid_figure as transition_grid_figure
    from analyze.transitions.grid import TransitionGrid as TransitionGrid
    from analyze.transitions.grid import transition_grid as transition_grid
    from analyze.transitions.transition import Transition as Transition
    from analyze.transitions.transition import published_transition as published_transition
    from analyze.transitions.transition import transition as transition
    from analyze.transitions.verdict import TransitionTest as TransitionTest
    from analyze.transitions.verdict import transition_test as transition_test
    from capture.errors import OutliersError as OutliersError

# Resolved at first use: a question needs a few of these modules.
_HOMES = {
    "DettmersTable": "analyze.answers.table4",
    "dettmers_table": "analyze.answers.table4",
    "all_conventions": "analyze.answers.conventions",
    "Null": "analyze.answers.null",
    "permutation_null": "analyze.answers.null",
    "layer_metrics": "analyze.answers.metrics",
    "extreme_tokens": "analyze.answers.metrics",
    "Info": "analyze.answers.info",
    "store_info": "analyze.answers.info",
    "scheduler": "analyze.peaks.scheduler",
    "sweep_figure": "analyze.answers.sweep_figure",
    "Comparison": "analyze.comparison.compare",
    "compare": "analyze.comparison.compare",
    "PublishedTable": "analyze.comparison.published",
    "published": "analyze.comparison.published",
    "Portrait": "analyze.portraits.portrait",
    "portrait": "analyze.portraits.portrait",
    "Walk": "analyze.portraits.walk",
    "walk": "analyze.portraits.walk",
    "FeatureMap": "analyze.portraits.map",
    "feature_map": "analyze.portraits.map",
    "map_figure": "analyze.portraits.figures",
    "portrait_figure": "analyze.portraits.figures",
    "walk_figure": "analyze.portraits.walk_figure",
    "Criteria": "analyze.question.criteria",
    "Outlier": "analyze.answers.find",
    "Outliers": "analyze.answers.find",
    "OutliersError": "capture.store.schema",
    "Report": "analyze.report.write",
    "write_report": "analyze.report.write",
    "Sweep": "analyze.answers.sweep",
    "Transition": "analyze.transitions.transition",
    "TransitionGrid": "analyze.transitions.grid",
    "TransitionTest": "analyze.transitions.verdict",
    "published_transition": "analyze.transitions.transition",
    "transition": "analyze.transitions.transition",
    "transition_figure": "analyze.transitions.figures",
    "transition_grid": "analyze.transitions.grid",
    "transition_grid_figure": "analyze.transitions.figures",
    "transition_test": "analyze.transitions.verdict",
    "View": "analyze.question.view",
    "activations": "analyze.reading.activations",
    "critical_magnitudes": "analyze.answers.find",
    "find_outliers": "analyze.answers.find",
    "Ablation": "analyze.answers.ablation",
    "read_ablations": "analyze.answers.ablation",
    "open_store": "analyze.reading.open",
    "pack": "analyze.sharing.pack",
    "push": "analyze.sharing.push",
    "sweep": "analyze.answers.sweep",
    "unpack": "analyze.sharing.unpack",
    "view_peaks": "analyze.peaks.lookup",
}

__all__ = sorted(_HOMES)


# `Dataset.outliers` must be there once `analyze` is, and it brings xarray, half a second. Only the installed command,
# whose help and TAB do without, waits until a question needs it; nobody's own scripts and modules have its name.
if Path(next(iter(sys.argv), "")).name not in ("outliers", "outliers.exe"):
    import_module("analyze.accessor")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
