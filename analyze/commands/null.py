"""`outliers null`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import print_or_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def null(
    store: StorePath,
    criteria: Criteria,
    repeats: Annotated[int, typer.Option(help="Number of permutations.")] = 20,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Say what the same criterion finds when features are permuted at each layer, site and position.

    Example: outliers null data/smollm2.zarr --preset study --repeats 100
    """
    from analyze.answers.null import permutation_null
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running

    with running(scheduler, workers), shown("reading and permuting") as progress:
        result = permutation_null(store, criteria, repeats=repeats, seed=seed, progress=progress)
    print_or_json(result, json_)
