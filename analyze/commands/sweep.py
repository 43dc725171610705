"""`outliers sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands import options
from analyze.commands.options import (
    Csv,
    Json,
    Many,
    ManyLayers,
    ManyPositions,
    Scheduler,
    StorePath,
    Workers,
    asks_for_criteria,
)
from analyze.commands.output import check_outputs, print_or_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def sweep(
    store: StorePath,
    criteria: Criteria,
    magnitude: Many = None,
    layers: ManyLayers = None,
    positions: ManyPositions = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Count outliers over many thresholds, exactly.

    Example: outliers sweep data/smollm2.zarr --magnitude 1:40:0.5 --plot sweep.svg
    """
    chosen = [
        None if text is None else options.numbers(text, name)
        for name, text in (("magnitude", magnitude), ("layers", layers), ("positions", positions))
    ]
    check_outputs(csv=csv, plot=plot)
    from analyze.answers.sweep import sweep as run
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(store, criteria, *chosen, progress=progress)
    if csv is not None:
        from analyze.display.tables import write_csv

        write_csv(csv, result.rows())
    if plot is not None:
        from analyze.answers.sweep_figure import sweep_figure
        from analyze.display.figures import save

        save(sweep_figure(result), plot)
    print_or_json(result, json_)
