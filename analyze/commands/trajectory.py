"""`outliers trajectory`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze.commands import options
from analyze.commands.options import Csv, Json, KeepPaths, Scheduler, Workers, asks_for_criteria
from analyze.commands.output import check_outputs, print_or_json, stores_named

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria

_MOST = 100  # checkpoints and features that are printed


@asks_for_criteria()
def trajectory(
    *,
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STORE...",
            help="Stores of one model at several steps: folders, .zarr.zip files, or URLs.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="step or tokens: what outliers are set against.")] = "step",
    steps: Annotated[
        str | None,
        typer.Option(help="Steps of the stores, in their order: 0,1000,2000.", show_default="as revisions are named"),
    ] = None,
    tokens_per_step: Annotated[
        float | None, typer.Option(help="Tokens of a training batch.", show_default="as revisions are named")
    ] = None,
    criteria: Criteria,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the sequences.")] = 1000,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    keep_paths: KeepPaths = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Follow outliers over the checkpoints of one training run: how many, of which features, and since when.

    Example: outliers trajectory pythia-step*.zarr --preset study --plot trajectory.png
    """
    check_outputs(csv=csv, plot=plot)
    places: Any = None
    if steps is not None:
        places = [int(step) if step.is_integer() else step for step in options.numbers(steps, "steps")]
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.trajectories.trajectory import trajectory as run

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(
            stores or [],
            criteria,
            by=by,
            steps=places,
            tokens_per_step=tokens_per_step,
            resamples=resamples,
            seed=seed,
            progress=progress,
        )
    if csv is not None:
        from analyze.display.tables import write_csv

        write_csv(csv, stores_named(result.rows(), keep_paths))
    if plot is not None:
        from analyze.display.figures import save
        from analyze.trajectories.figures import trajectory_figure

        save(trajectory_figure(result), plot)
    print_or_json(result, json_, _MOST)
