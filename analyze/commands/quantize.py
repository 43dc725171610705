"""`outliers quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import (
    Csv,
    Json,
    LayerRange,
    Scheduler,
    Sequences,
    Sites,
    SkipFirst,
    Workers,
    criteria_of,
    numbers,
)
from analyze.commands.output import print_json
from capture.store.output import output_file

if TYPE_CHECKING:
    from analyze.quantization.result import Quantization


def quantize(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE...", help="One store or several: folder, .zarr.zip file, or URL.", show_default=False
        ),
    ],
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help="int4 to int8 with -tensor, -token or -groupG; fp8-tensor, fp8-token, mxfp8, mxfp4, nvfp4. "
            "May be given again.",
            show_default="twelve of them",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Keep columns with |x| >= this in 16 bits, as LLM.int8() does: START:STOP:STEP, a list or a number; "
            "for schemes by token.",
            show_default="none kept",
        ),
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="none, hadamard, hadamard:SEED or smooth:A with A from 0 to 1. May be given again.",
            show_default="none",
        ),
    ] = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw one store's errors to this .png or .svg file.", show_default=False),
    ] = None,
    json_: Json = False,
) -> None:
    """Say what quantisers would lose on what the sublayers read, scheme by scheme, best first.

    Example: outliers quantize data/smollm2.zarr --scheme int8-token --threshold 2:8:2 --plot quantize.png
    """
    if csv is not None:
        output_file(csv)
    if plot is not None:
        from analyze.display.figures import check_path
        from capture.errors import OutliersError

        check_path(plot)  # before the work, not after it
        if len(stores) > 1:
            raise OutliersError(f"plot draws one store, and {len(stores)} are given; draw each by itself")
    view = criteria_of(None, layer_range=layer_range, sites=sites, sequences=sequences, skip_first=skip_first).view
    limits = [] if threshold is None else numbers(threshold, "threshold")
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.quantization.quantize import quantize as run

    results = []
    with running(scheduler, workers), shown("reading activations") as progress:
        for store in stores:
            results.append(
                run(
                    store,
                    scheme or None,
                    thresholds=limits,
                    transforms=transform or ("none",),
                    view=view,
                    progress=progress,
                )
            )
    if csv is not None:
        from analyze.display.tables import write_csv

        named = len(results) > 1
        write_csv(csv, [({"store": one.name} if named else {}) | row for one in results for row in one.rows()])
    if plot is not None:
        from analyze.display.figures import save
        from analyze.quantization.quantize_figure import quantize_figure

        save(quantize_figure(results[0]), plot)
    if json_:
        told = [result.to_dict() for result in results]
        print_json(told[0] if len(told) == 1 else {"stores": told})
    else:
        print_quantization(results)


def print_quantization(results: list[Quantization]) -> None:
    """Each store, then all side by side where they are several."""
    from analyze.display.tables import print_facts, print_rows
    from analyze.quantization.result import side_by_side

    for result in results:
        print_facts(result.summary())
        for title, rows in result.tables():
            print()
            print_rows(rows, title=title)
        print()
    if len(results) > 1:
        print_rows(side_by_side(results), title="side by side")
