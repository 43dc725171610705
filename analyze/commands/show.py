"""`outliers show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import check_outputs, print_or_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria(without=("counting",))
def show(
    store: StorePath,
    feature: Annotated[int, typer.Option(help="Index into the hidden dimension.", show_default=False)],
    *,
    sequence: Annotated[
        int | None, typer.Option(help="Sequence whose layers and positions are mapped.", show_default="the strongest")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many of the strongest tokens to list.")] = 10,
    with_origin: Annotated[
        bool, typer.Option("--origin", help="Say too which sublayer first writes it, at which token, and how it fades.")
    ] = False,
    criteria: Criteria,
    scheduler: Scheduler = None,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Say where one feature is extreme: layers, positions, tokens, and its critical magnitudes.

    Example: outliers show data/smollm2.zarr --feature 507 --plot feature-507.png
    """
    check_outputs(plot=plot)
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.portraits.portrait import portrait

    with running(scheduler, workers), shown("reading activations") as progress:
        found = portrait(
            store, feature, criteria, sequence=sequence, tokens=tokens, with_origin=with_origin, progress=progress
        )
    if plot is not None:
        from analyze.display.figures import save
        from analyze.portraits.figures import portrait_figure

        save(portrait_figure(found), plot)
    print_or_json(found, json_)
