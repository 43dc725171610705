"""`outliers find`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from analyze.options import (
    Counting,
    Json,
    LayerRange,
    Layers,
    LayerUnit,
    Magnitude,
    Positions,
    Preset,
    Rounding,
    Scale,
    Scheduler,
    Sequences,
    Signal,
    Sites,
    SkipFirst,
    StorePath,
    Workers,
    criteria_of,
)
from analyze.printing import print_json


def find(
    store: StorePath,
    preset: Preset = None,
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    rounding: Rounding = None,
    all_conventions: Annotated[
        bool, typer.Option("--all-conventions", help="One row for each signal, counting, layer unit, and first token.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Find the outlier features at one threshold.

    Example: outliers find data/smollm2.zarr --preset study
    """
    criteria = criteria_of(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        counting=counting,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        scale=scale,
        rounding=rounding,
    )
    from analyze.cluster import scheduler as running
    from analyze.progress import shown

    if all_conventions:
        from analyze.conventions import all_conventions as run

        with running(scheduler, workers), shown("reading activations") as progress:
            rows = run(store, criteria, progress=progress)
        _print_rows(rows, criteria, json_)
        return
    from analyze.find import find_outliers

    with running(scheduler, workers), shown("reading activations") as progress:
        found = find_outliers(store, criteria, progress=progress)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.tables import print_found

        print_found(found)


def _print_rows(rows: list[dict[str, Any]], criteria: Any, json_: bool) -> None:
    if json_:
        from analyze.find import all_jsonable

        print_json({"criteria": criteria.to_dict(), "rows": all_jsonable(rows)})
    else:
        from analyze.tables import print_rows

        print_rows(
            rows,
            f"|x| >= {criteria.magnitude:g} in at least {criteria.layers * 100:g}% of layer units "
            f"and at {criteria.positions * 100:g}% of positions",
        )
