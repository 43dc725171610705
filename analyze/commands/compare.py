"""`outliers compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, KeepPaths, Scheduler, Workers, asks_for_criteria
from analyze.commands.output import print_json
from capture.errors import OutliersError
from capture.store.output import results_folder

if TYPE_CHECKING:
    from analyze.comparison.result import Comparison
    from analyze.question.criteria import Criteria


@asks_for_criteria(preset="study")
def compare(
    *,
    stores: Annotated[
        list[str] | None, typer.Argument(metavar="STORE...", help="Stores: folders, .zarr.zip files, or URLs.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add the numbers of the study and of Dettmers et al. (2022).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write tables and figures to this folder.", show_default=False)
    ] = None,
    criteria: Criteria,
    quartiles: Annotated[
        bool, typer.Option("--quartiles", help="Read the activations too, for Table 4's quartiles and Figure 4a.")
    ] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the sequences.")] = 1000,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    keep_paths: KeepPaths = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Set stores beside each other and beside the published numbers: the study's and Dettmers' tables and figures.

    Example: outliers compare data/*.zarr --published --out comparison
    """
    if out is not None:
        out = results_folder(out)  # before the work, not after it
    from analyze.commands.progress import shown
    from analyze.comparison.compare import compare as run
    from analyze.comparison.result import public
    from analyze.peaks.scheduler import scheduler as running

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(
            stores or [],
            criteria,
            published=published,
            quartiles=quartiles,
            resamples=resamples,
            seed=seed,
            progress=progress,
        )
    written = [] if out is None else _write(result if keep_paths else public(result), out)
    if json_:
        print_json(result.to_dict())
    elif out is not None:
        names = "moe, dense, table4 and quantised" if result.quantised else "moe, dense and table4"
        print(f"{len(written)} files in {out}: the tables {names} as .md, .csv and .json, and 8 figures")
    else:
        from analyze.comparison.result import as_text

        print(as_text(result))


def _write(result: Comparison, folder: Path) -> list[Path]:
    from analyze.comparison.figures import write_figures
    from analyze.comparison.result import write_tables

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutliersError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from error
    return [*write_tables(result, folder), *write_figures(result, folder)]
