"""`outliers report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands import options
from analyze.commands.options import Json, KeepPaths, Scheduler, Workers, asks_for_criteria
from analyze.commands.output import print_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def report(
    stores: Annotated[
        list[str],
        typer.Argument(metavar="STORE...", help="Stores: folders, .zarr.zip files, or URLs.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.", show_default=False)],
    criteria: Criteria,
    magnitude: Annotated[
        str | None,
        typer.Option(help="Magnitudes to offer: START:STOP:STEP or a list.", show_default="as many as fit"),
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="input or output: embed this one alone.", show_default="both")
    ] = None,
    budget: Annotated[float, typer.Option(help="Most megabytes of the file.")] = 5.0,
    quantize: Annotated[
        bool,
        typer.Option(
            "--quantize",
            help="Spend a pass over the activations on what quantisers lose; else shown where outliers quantize has "
            "found it earlier.",
        ),
    ] = False,
    keep_paths: KeepPaths = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Write one HTML page with sliders that answers every threshold exactly, without a network.

    Thresholds, counting and layer unit are what the page opens with; the view is what it holds.

    Example: outliers report data/smollm2.zarr --out report.html
    """
    if signal is not None:
        criteria = replace(criteria, signal=signal)  # type: ignore[arg-type]  # a word that it does not know is refused
    magnitudes = None if magnitude is None else options.numbers(magnitude, "magnitude")
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.report.write import write_report
    from capture.store.schema import SIGNALS

    with running(scheduler, workers), shown("reading peaks") as progress:
        written = write_report(
            stores,
            out,
            criteria,
            signals=SIGNALS if signal is None else (signal,),
            magnitudes=magnitudes,
            budget=budget * 1e6,
            quantize=quantize,
            keep_paths=keep_paths,
            progress=progress,
        )
    if json_:
        print_json(written.to_dict())
    else:
        from analyze.display.text import plain

        print(plain(str(written)))
