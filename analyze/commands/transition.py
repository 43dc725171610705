"""`outliers transition`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze.commands import options
from analyze.commands.options import Json, KeepPaths, Many, ManyLayers, Scheduler, Workers, asks_for_criteria
from analyze.commands.output import print_json
from capture.store.output import results_folder

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def transition(
    *,
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE...",
            help="Stores of different models: folders, .zarr.zip files, or URLs.",
            show_default=False,
        ),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="Test the published tables too.")] = False,
    against: Annotated[str, typer.Option(help="total or active parameters, or perplexity.")] = "total",
    at: Annotated[
        float | None,
        typer.Option(help="Change point known before these data, such as 6.7e9.", show_default="searched for"),
    ] = None,
    absent: Annotated[str, typer.Option(help="A model without outliers: zero or drop.")] = "zero",
    criteria: Criteria,
    magnitude: Many = None,
    layers: ManyLayers = None,
    repeats: Annotated[
        int | None, typer.Option(help="Random permutations and samples.", show_default="9999, 1999 for a grid's cell")
    ] = None,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    keep_paths: KeepPaths = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables and figures.", metavar="DIR", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Test whether outliers step, trend or do neither over models of several sizes.

    Several magnitudes or shares of layers make a grid: the verdict for each, under every convention.

    Example: outliers transition opt-*.zarr --preset study --magnitude 2:20:1 --layers 0.1:1:0.1 --out transition
    """
    if out is not None:
        out = results_folder(out)  # before the work, not after it
    grids = {
        name: options.numbers(text, name)
        for name, text in (("magnitude", magnitude), ("layers", layers))
        if text is not None
    }
    single: dict[str, Any] = {name: values[0] for name, values in grids.items() if len(values) == 1}
    criteria = replace(criteria, **single)
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.transitions.grid import GRID_REPEATS, transition_grid
    from analyze.transitions.transition import REPEATS, published_transitions
    from analyze.transitions.transition import transition as run

    results, grid = [], None
    left_out: dict[str, str] = {}
    settings: dict[str, Any] = {"against": against, "at": at, "seed": seed}
    if stores or not published:
        with running(scheduler, workers), shown("reading activations") as progress:
            results.append(
                run(
                    stores or [],
                    criteria,
                    absent=absent,
                    repeats=REPEATS if repeats is None else repeats,
                    progress=progress,
                    **settings,
                )
            )
        if any(len(values) > 1 for values in grids.values()):
            with running(scheduler, workers), shown("sweeping stores") as progress:
                grid = transition_grid(
                    stores or [],
                    criteria,
                    grids.get("magnitude"),
                    grids.get("layers"),
                    absent=absent,
                    repeats=GRID_REPEATS if repeats is None else repeats,
                    progress=progress,
                    **settings,
                )
    if published:
        tables, left_out = published_transitions(repeats=REPEATS if repeats is None else repeats, **settings)
        results += tables
    from analyze.transitions.tables import print_transitions, result_of, write_transitions

    if out is not None:
        write_transitions(out, results, grid, keep_paths=keep_paths)
    if json_:
        print_json(result_of(results, grid, left_out))
    else:
        print_transitions(results, grid, left_out)
