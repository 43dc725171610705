"""`outliers walk`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze.commands import options
from analyze.commands.options import Json, Scheduler, StorePath, Workers
from analyze.commands.output import check_outputs, print_or_json


def walk(
    store: StorePath,
    feature: Annotated[int, typer.Option(help="Index into the hidden dimension.", show_default=False)],
    sequence: Annotated[int, typer.Option(help="Sequence whose stream is walked.")] = 0,
    layer: Annotated[int | None, typer.Option(help="Layer.", show_default="that of the largest change")] = None,
    site: Annotated[str | None, typer.Option(help="Site.", show_default="that of the largest change")] = None,
    positions: Annotated[
        str | None, typer.Option(help="Rows: indices such as 0,2,5:8.", show_default="the first three")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="Columns: indices such as 0,2,5:8.", show_default="neighbours of the feature")
    ] = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Walk the residual stream through one sublayer: stream + contribution = stream after it.

    Example: outliers walk data/smollm2.zarr --feature 507 --positions 0:4 --plot walk.png
    """
    rows = None if positions is None else options.indices(positions, "positions")
    columns = None if features is None else options.indices(features, "features")
    check_outputs(plot=plot)
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.portraits.walk import walk as run

    with running(scheduler, workers), shown("reading activations") as progress:
        found = run(
            store,
            feature,
            sequence=sequence,
            layer=layer,
            site=site,
            positions=rows,
            features=columns,
            progress=progress,
        )
    if plot is not None:
        from analyze.display.figures import save
        from analyze.portraits.walk_figure import walk_figure

        save(walk_figure(found), plot)
    print_or_json(found, json_)
