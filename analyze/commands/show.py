"""`outliers show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import print_json

if TYPE_CHECKING:
    from analyze.portraits.origin import Origin
    from analyze.portraits.portrait import Portrait
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
    if plot is not None:
        from analyze.display.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.portraits.portrait import portrait

    with running(scheduler, workers), shown("reading activations") as progress:
        found = portrait(store, feature, criteria, sequence=sequence, tokens=tokens, progress=progress)
    source = None
    if with_origin:
        from analyze.portraits.origin import origin

        with running(scheduler, workers), shown("following the stream") as progress:
            source = origin(
                store, feature, sequences=criteria.sequences, skip_first=criteria.skip_first, progress=progress
            )
    if plot is not None:
        from analyze.display.figures import save
        from analyze.portraits.figures import portrait_figure

        save(portrait_figure(found), plot)
    if json_:
        print_json(found.to_dict() if source is None else {**found.to_dict(), "origin": source.to_dict()})
    else:
        print_portrait(found)
        if source is not None:
            print()
            print_origin(source)


def print_portrait(found: Portrait) -> None:
    """The feature in words, by sequence, by layer, and its strongest tokens."""
    from analyze.display.tables import print_facts, print_rows

    print_facts(found.summary())
    for title, rows in (
        ("by sequence", list(found.sequences)),
        ("smallest and largest value over sequences and positions", found.layer_rows),
        ("tokens with the largest magnitudes", list(found.tokens)),
    ):
        print()
        print_rows(rows, title)


def print_origin(found: Origin) -> None:
    """Who writes the feature, in each sequence, and its way through the model."""
    from analyze.display.tables import print_facts, print_rows

    print_facts(found.summary())
    print()
    print_rows(list(found.rows), "the sublayer that first writes it, by sequence")
    print()
    top = found.strongest
    rows = [{**row, "layer": "" if row["layer"] is None else str(row["layer"])} for row in found.path]
    print_rows(rows, f"sequence {top['sequence']}, position {top['position']}, norm by norm")
