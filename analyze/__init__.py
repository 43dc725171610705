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
    from analyze.cluster import scheduler as scheduler
    from analyze.conventions import all_conventions as all_conventions
    from analyze.criteria import Criteria as Criteria
    from analyze.dettmers import DettmersTable as DettmersTable
    from analyze.dettmers import dettmers_table as dettmers_table
    from analyze.figures import sweep_figure as sweep_figure
    from analyze.find import Outlier as Outlier
    from analyze.find import Outliers as Outliers
    from analyze.find import critical_magnitudes as critical_magnitudes
    from analyze.find import find_outliers as find_outliers
    from analyze.info import Info as Info
    from analyze.info import store_info as store_info
    from analyze.load import open_store as open_store
    from analyze.metrics import extreme_tokens as extreme_tokens
    from analyze.metrics import layer_metrics as layer_metrics
    from analyze.null import Null as Null
    from analyze.null import permutation_null as permutation_null
    from analyze.peaks import view_peaks as view_peaks
    from analyze.portraits.figures import map_figure as map_figure
    from analyze.portraits.figures import portrait_figure as portrait_figure
    from analyze.portraits.portrait import Portrait as Portrait
    from analyze.portraits.portrait import portrait as portrait
    from analyze.portraits.residual import Walk as Walk
    from analyze.portraits.residual import walk as walk
    from analyze.portraits.strongest import FeatureMap as FeatureMap
    from analyze.portraits.strongest import feature_map as feature_map
    from analyze.portraits.walk_figure import walk_figure as walk_figure
    from analyze.report.write import Report as Report
    from analyze.report.write import write_report as write_report
    from analyze.sharing.pack import pack as pack
    from analyze.sharing.push import push as push
    from analyze.sharing.unpack import unpack as unpack
    from analyze.stored import activations as activations
    from analyze.study.ablations import Ablation as Ablation
    from analyze.study.ablations import read_ablations as read_ablations
    from analyze.study.compare import Comparison as Comparison
    from analyze.study.compare import compare as compare
    from analyze.study.published import PublishedTable as PublishedTable
    from analyze.study.published import published as published
    from analyze.study.transition import Transition as Transition
    from analyze.study.transition import published_transition as published_transition
    from analyze.study.transition import transition as transition
    from analyze.study.transition_figures import transition_figure as transition_figure
    from analyze.study.transition_figures import transition_grid_figure as transition_grid_figure
    from analyze.study.transition_grid import TransitionGrid as TransitionGrid
    from analyze.study.transition_grid import transition_grid as transition_grid
    from analyze.study.transition_verdict import TransitionTest as TransitionTest
    from analyze.study.transition_verdict import transition_test as transition_test
    from analyze.sweeps import Sweep as Sweep
    from analyze.sweeps import sweep as sweep
    from analyze.view import View as View
    from capture.schema import OutliersError as OutliersError

# Resolved at first use: a question needs a few of these modules.
_HOMES = {
    "DettmersTable": "analyze.dettmers",
    "dettmers_table": "analyze.dettmers",
    "all_conventions": "analyze.conventions",
    "Null": "analyze.null",
    "permutation_null": "analyze.null",
    "layer_metrics": "analyze.metrics",
    "extreme_tokens": "analyze.metrics",
    "Info": "analyze.info",
    "store_info": "analyze.info",
    "scheduler": "analyze.cluster",
    "sweep_figure": "analyze.figures",
    "Comparison": "analyze.study.compare",
    "compare": "analyze.study.compare",
    "PublishedTable": "analyze.study.published",
    "published": "analyze.study.published",
    "Portrait": "analyze.portraits.portrait",
    "portrait": "analyze.portraits.portrait",
    "Walk": "analyze.portraits.residual",
    "walk": "analyze.portraits.residual",
    "FeatureMap": "analyze.portraits.strongest",
    "feature_map": "analyze.portraits.strongest",
    "map_figure": "analyze.portraits.figures",
    "portrait_figure": "analyze.portraits.figures",
    "walk_figure": "analyze.portraits.walk_figure",
    "Criteria": "analyze.criteria",
    "Outlier": "analyze.find",
    "Outliers": "analyze.find",
    "OutliersError": "capture.schema",
    "Report": "analyze.report.write",
    "write_report": "analyze.report.write",
    "Sweep": "analyze.sweeps",
    "Transition": "analyze.study.transition",
    "TransitionGrid": "analyze.study.transition_grid",
    "TransitionTest": "analyze.study.transition_verdict",
    "published_transition": "analyze.study.transition",
    "transition": "analyze.study.transition",
    "transition_figure": "analyze.study.transition_figures",
    "transition_grid": "analyze.study.transition_grid",
    "transition_grid_figure": "analyze.study.transition_figures",
    "transition_test": "analyze.study.transition_verdict",
    "View": "analyze.view",
    "activations": "analyze.stored",
    "critical_magnitudes": "analyze.find",
    "find_outliers": "analyze.find",
    "Ablation": "analyze.study.ablations",
    "read_ablations": "analyze.study.ablations",
    "open_store": "analyze.load",
    "pack": "analyze.sharing.pack",
    "push": "analyze.sharing.push",
    "sweep": "analyze.sweeps",
    "unpack": "analyze.sharing.unpack",
    "view_peaks": "analyze.peaks",
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
