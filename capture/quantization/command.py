"""`outliers quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze.commands.options import (
    OF_CRITERIA_ALONE,
    Csv,
    Json,
    KeepPaths,
    Scheduler,
    Workers,
    asks_for_criteria,
    numbers,
)
from analyze.commands.output import check_outputs, print_json, print_or_json, stores_named
from capture.errors import OutliersError
from capture.options import Device, StoreModel, Trust
from capture.stderr import tell

if TYPE_CHECKING:
    from analyze.quantization.result import Quantization
    from analyze.question.criteria import Criteria


@asks_for_criteria(without=OF_CRITERIA_ALONE)
def quantize_command(
    stores: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE...", help="One store or several: folder, .zarr.zip file, or URL.", show_default=False
        ),
    ],
    criteria: Criteria,
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
    scales_from: Annotated[
        str | None,
        typer.Option(
            help="Another store of the same model, whose largest magnitudes set the scales; for schemes by tensor.",
            show_default="what is quantised",
        ),
    ] = None,
    perplexity: Annotated[
        bool,
        typer.Option("--perplexity", help="Run the store's model under the quantisers as well; needs [capture]."),
    ] = False,
    model: StoreModel = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run the model again for what the store has the answer to.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    keep_paths: KeepPaths = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw one store's errors to this .png or .svg file.", show_default=False),
    ] = None,
    json_: Json = False,
) -> None:
    """Say what quantisers would lose on what the sublayers read, scheme by scheme, best first.

    Example: outliers quantize data/smollm2.zarr --scheme int8-token --threshold 2:8:2 --plot quantize.png
    """
    check_outputs(csv=csv, plot=plot)
    _check_together(stores, plot is not None, scales_from, perplexity, threshold is not None or bool(transform))
    if not perplexity and (model is not None or trust_remote_code or overwrite):
        raise OutliersError("model, trust-remote-code and overwrite are for --perplexity; add it, or leave them out")
    limits = [] if threshold is None else numbers(threshold, "threshold")
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.quantization.quantize import quantize as run
    from analyze.quantization.static import quantize_static

    asked: dict[str, Any] = {"thresholds": limits, "transforms": transform or ("none",)}
    results: list[Any]
    if perplexity:
        settings = {"model": model, "device": device, "trust_remote_code": trust_remote_code, "overwrite": overwrite}
        results = [_with_model(stores[0], scheme or None, **asked, view=criteria.view, **settings)]
    else:
        with running(scheduler, workers), shown("reading activations") as progress:
            where: dict[str, Any] = {"view": criteria.view, "progress": progress}
            if scales_from is None:
                results = [run(store, scheme or None, **asked, **where) for store in stores]
            else:
                results = [quantize_static(stores[0], scales_from, scheme or None, **where)]
    _written(results, csv, plot, keep_paths)
    if len(results) == 1:
        print_or_json(results[0], json_)
    elif json_:
        print_json({"stores": [result.to_dict() for result in results]})
    else:
        print_stores(results)


def _check_together(stores: list[str], plot: bool, scales_from: str | None, perplexity: bool, varied: bool) -> None:
    """Refuse options that do not go together, before the work and not after it."""
    if plot and len(stores) > 1:
        raise OutliersError(f"plot draws one store, and {len(stores)} are given; draw each by itself")
    if scales_from is not None and (len(stores) > 1 or varied or plot):
        raise OutliersError(
            "scales-from is for one store, without --threshold, --transform and --plot; leave these out"
        )
    if perplexity and (len(stores) > 1 or scales_from is not None):
        raise OutliersError("perplexity is of one store, without --scales-from; leave these out")


def _written(results: list[Any], csv: Path | None, plot: Path | None, keep_paths: bool) -> None:
    """Write the rows and the figure that were asked for."""
    if csv is not None:
        from analyze.display.tables import write_csv

        several = len(results) > 1
        rows = [({"store": one.name} if several else {}) | row for one in results for row in one.rows()]
        write_csv(csv, stores_named(rows, keep_paths) if several else rows)
    if plot is not None:
        from analyze.display.figures import save
        from analyze.quantization.quantize_figure import quantize_figure

        save(quantize_figure(results[0]), plot)


def _with_model(store: str, schemes: list[str] | None, **settings: Any) -> Quantization:
    """The same, with the model at work."""
    from capture.environment import prepare

    prepare()
    from analyze.commands.progress import shown
    from capture.quantization.perplexity import quantize_with_perplexity

    try:
        with shown("passes") as progress:
            return quantize_with_perplexity(store, schemes, **settings, progress=progress)
    except KeyboardInterrupt:
        tell("outliers: interrupted; finished schemes are safe, and the same command goes on")
        raise typer.Exit(130) from None


def print_stores(results: list[Quantization]) -> None:
    """Each store, then all side by side."""
    from analyze.display.tables import print_result, print_rows
    from analyze.quantization.result import side_by_side

    for result in results:
        print_result(result)
        print()
    print_rows(side_by_side(results), title="side by side")
