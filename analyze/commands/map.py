"""`outliers map`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.printing import print_json

if TYPE_CHECKING:
    from analyze.criteria import Criteria


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
    if plot is not None:
        from analyze.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.portraits.strongest import feature_map
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading activations") as progress:
        found = feature_map(store, criteria, top=top, progress=progress)
    if plot is not None:
        from analyze.figures import save
        from analyze.portraits.figures import map_figure

        save(map_figure(found), plot)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.portraits.tables import print_map

        print_map(found)
