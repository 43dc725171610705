"""`outliers map`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import check_outputs, print_or_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def map(
    store: StorePath,
    *,
    top: Annotated[int, typer.Option(help="Number of features, the strongest first.")] = 20,
    criteria: Criteria,
    scheduler: Scheduler = None,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Map the strongest features by layers, with the sign of their peaks.

    Example: outliers map data/smollm2.zarr --top 20 --plot map.png
    """
    check_outputs(plot=plot)
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.portraits.map import feature_map

    with running(scheduler, workers), shown("reading activations") as progress:
        found = feature_map(store, criteria, top=top, progress=progress)
    if plot is not None:
        from analyze.display.figures import save
        from analyze.portraits.figures import map_figure

        save(map_figure(found), plot)
    print_or_json(found, json_)
