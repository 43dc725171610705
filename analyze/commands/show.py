"""`outliers show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.printing import print_json

if TYPE_CHECKING:
    from analyze.criteria import Criteria


@asks_for_criteria(without=("counting",))
def show(
    store: StorePath,
    feature: Annotated[int, typer.Option(help="Index into the hidden dimension.", show_default=False)],
    *,
    sequence: Annotated[
        int | None, typer.Option(help="Sequence whose layers and positions are mapped.", show_default="the strongest")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many of the strongest tokens to list.")] = 10,
    criteria: Criteria,
    scheduler: Scheduler = None,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Say where one feature is extreme: layers, positions, tokens, and its critical magnitudes.

    Example: outliers show data/smollm2.zarr --feature 507 --plot feature-507.png
    """
    if plot is not None:
        from analyze.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.portraits.portrait import portrait
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading activations") as progress:
        found = portrait(store, feature, criteria, sequence=sequence, tokens=tokens, progress=progress)
    if plot is not None:
        from analyze.figures import save
        from analyze.portraits.figures import portrait_figure

        save(portrait_figure(found), plot)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.portraits.tables import print_portrait

        print_portrait(found)
