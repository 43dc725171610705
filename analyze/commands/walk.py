"""`outliers walk`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze import arguments
from analyze.options import Json, Scheduler, StorePath, Workers
from analyze.printing import print_json


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
    rows = None if positions is None else arguments.indices(positions, "positions")
    columns = None if features is None else arguments.indices(features, "features")
    if plot is not None:
        from analyze.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.portraits.residual import walk as run
    from analyze.progress import shown

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
        from analyze.figures import save
        from analyze.portraits.walk_figure import walk_figure

        save(walk_figure(found), plot)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.portraits.tables import print_walk

        print_walk(found)
