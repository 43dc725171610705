"""`outliers fits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze.commands.options import Csv, Json, StorePath, numbers
from analyze.commands.output import check_outputs, print_or_json


def fits(
    store: StorePath,
    format: Annotated[
        str, typer.Option(help="float16, bfloat16, float8_e4m3fn, float8_e5m2 or int8; without scaling.")
    ] = "float16",
    scale: Annotated[float | None, typer.Option(help="What one step of int8 stands for.", show_default=False)] = None,
    threshold: Annotated[
        str, typer.Option(help="Of LLM.int8(), whose kept columns are counted: START:STOP:STEP, a list or a number.")
    ] = "6",
    csv: Csv = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the kept columns to this .png or .svg file.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Say whether a number format holds a model's activations, and where it overflows first.

    Example: outliers fits data/smollm2.zarr --format float8_e4m3fn
    """
    check_outputs(csv=csv, plot=plot)
    from analyze.quantization.fits import fits as run

    result = run(store, format, scale=scale, thresholds=numbers(threshold, "threshold"))
    if csv is not None:
        from analyze.display.tables import write_csv

        write_csv(csv, result.rows())
    if plot is not None:
        from analyze.display.figures import save
        from analyze.quantization.kept_figure import kept_figure

        save(kept_figure(result.kept), plot)
    print_or_json(result, json_)
