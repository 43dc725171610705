"""`outliers sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze import arguments
from analyze.options import (
    Counting,
    Csv,
    Json,
    LayerRange,
    LayerUnit,
    Many,
    ManyLayers,
    ManyPositions,
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


def sweep(
    store: StorePath,
    preset: Preset = None,
    magnitude: Many = None,
    layers: ManyLayers = None,
    positions: ManyPositions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    rounding: Rounding = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Count outliers over many thresholds, exactly.

    Example: outliers sweep data/smollm2.zarr --magnitude 1:40:0.5 --plot sweep.svg
    """
    criteria = criteria_of(
        preset,
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
    chosen = [
        None if text is None else arguments.numbers(text, name)
        for name, text in (("magnitude", magnitude), ("layers", layers), ("positions", positions))
    ]
    if plot is not None:
        from analyze.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.progress import shown
    from analyze.sweeps import sweep as run

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(store, criteria, *chosen, progress=progress)
    if csv is not None:
        from analyze.tables import write_csv

        write_csv(csv, result.rows)
    if plot is not None:
        from analyze.figures import save, sweep_figure

        save(sweep_figure(result), plot)
    if json_:
        print_json(result.to_dict())
    else:
        from analyze.tables import print_sweep

        print_sweep(result)
