"""`outliers sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands import options
from analyze.commands.options import (
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
    SkipTokens,
    StorePath,
    Workers,
    criteria_of,
)
from analyze.commands.output import print_json
from capture.store.output import output_file

if TYPE_CHECKING:
    from analyze.answers.sweep import Sweep


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
    skip_tokens: SkipTokens = None,
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
        skip_tokens=skip_tokens,
        scale=scale,
        rounding=rounding,
    )
    chosen = [
        None if text is None else options.numbers(text, name)
        for name, text in (("magnitude", magnitude), ("layers", layers), ("positions", positions))
    ]
    if csv is not None:
        output_file(csv)
    if plot is not None:
        from analyze.display.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.answers.sweep import sweep as run
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(store, criteria, *chosen, progress=progress)
    if csv is not None:
        from analyze.display.tables import write_csv

        write_csv(csv, result.rows)
    if plot is not None:
        from analyze.answers.sweep_figure import sweep_figure
        from analyze.display.figures import save

        save(sweep_figure(result), plot)
    if json_:
        print_json(result.to_dict())
    else:
        print_sweep(result)


def print_sweep(result: Sweep) -> None:
    """One row a combination of thresholds."""
    from analyze.display.tables import print_rows

    c = result.criteria
    print_rows(result.rows, title=f"norm {c.signal}, scale {c.scale}, layer unit {c.layer_unit}; {c.conventions()}")
