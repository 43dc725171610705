"""The `outliers` command: each subcommand a thin shell over one public function, with heavy imports inside."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from analyze import arguments
from capture.cli import register
from capture.schema import OutliersError

app = typer.Typer(
    name="outliers",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="Folder made by outliers capture.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Preset = Annotated[str | None, typer.Option(help="study or dettmers: all conventions at once.", show_default=False)]
Magnitude = Annotated[float | None, typer.Option(help="A value hits where |x| >= this.", show_default="6")]
Layers = Annotated[float | None, typer.Option(help="Least share of layer units with a hit.", show_default="0.25")]
Positions = Annotated[float | None, typer.Option(help="Least share of positions with a hit.", show_default="0.06")]
Signal = Annotated[str | None, typer.Option(help="input or output of the norms.", show_default="input")]
Counting = Annotated[str | None, typer.Option(help="per-sequence or pooled.", show_default="per-sequence")]
LayerUnit = Annotated[str | None, typer.Option(help="site or layer.", show_default="site")]
LayerRange = Annotated[str | None, typer.Option(help="FIRST:STOP; STOP is left out.", show_default="all")]
Sites = Annotated[str | None, typer.Option(help="Names, separated by commas.", show_default="all")]
Sequences = Annotated[str | None, typer.Option(help="Indices such as 0,2,5:8.", show_default="all")]
SkipFirst = Annotated[int | None, typer.Option(help="Positions at the start that do not count.", show_default="0")]
Scale = Annotated[str | None, typer.Option(help="absolute, rms or median.", show_default="absolute")]
Many = Annotated[str | None, typer.Option(help="START:STOP:STEP, a list, or a number.", show_default="6")]
ManyLayers = Annotated[str | None, typer.Option(help="As --magnitude, fractions.", show_default="0.25")]
ManyPositions = Annotated[str | None, typer.Option(help="As --magnitude, fractions.", show_default="0.06")]
Scheduler = Annotated[str | None, typer.Option(help="tcp://HOST:PORT of a dask scheduler.", show_default="threads")]
Workers = Annotated[int | None, typer.Option(help="Worker processes to start here.", show_default="threads")]
Csv = Annotated[Path | None, typer.Option(help="Write the rows to this file.", show_default=False)]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        typer.echo(f"outliers {version('outlier-features')}")
        for library in ("zarr", "xarray", "dask", "numpy", "torch", "transformers", "nnsight"):
            try:
                typer.echo(f"{library} {version(library)}")
            except PackageNotFoundError:
                typer.echo(f"{library} not installed")
        raise typer.Exit


@app.callback()
def outliers(
    version: Annotated[
        bool, typer.Option("--version", help="Print versions and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Capture a language model's activations once; ask outlier-feature questions of them as often as you like."""


def _criteria(preset: str | None, **settings: Any) -> Any:
    """Criteria of a preset with every setting that was given on top."""
    from analyze.criteria import Criteria

    given = {name: value for name, value in settings.items() if value is not None}
    for name, parse in (("layer_range", arguments.layer_range), ("sequences", arguments.sequences)):
        if name in given:
            given[name] = parse(given[name])
    if "sites" in given:
        given["sites"] = tuple(part.strip() for part in given["sites"].split(","))
    return Criteria.preset(preset, **given)


@app.command()
def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds, and how far its capture is.

    Example: outliers info data/smollm2.zarr
    """
    from analyze.info import store_info

    facts = store_info(store)
    if json_:
        _print_json(facts.to_dict())
    else:
        from analyze.tables import print_info

        print_info(facts)


@app.command()
def find(
    store: StorePath,
    preset: Preset = None,
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    all_conventions: Annotated[
        bool, typer.Option("--all-conventions", help="One row for each signal, counting, layer unit, and first token.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Find the outlier features at one threshold.

    Example: outliers find data/smollm2.zarr --preset study
    """
    criteria = _criteria(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        counting=counting,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        scale=scale,
    )
    from analyze.cluster import scheduler as running
    from analyze.progress import shown

    if all_conventions:
        from analyze.conventions import all_conventions as run

        with running(scheduler, workers), shown("reading activations") as progress:
            rows = run(store, criteria, progress=progress)
        _print_rows(rows, criteria, json_)
        return
    from analyze.find import find_outliers

    with running(scheduler, workers), shown("reading activations") as progress:
        found = find_outliers(store, criteria, progress=progress)
    if json_:
        _print_json(found.to_dict())
    else:
        from analyze.tables import print_found

        print_found(found)


@app.command()
def sweep(
    store: StorePath,
    preset: Preset = None,
    magnitude: Many = None,
    layers: ManyLayers = None,
    positions: ManyPositions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Count outliers over many thresholds, exactly.

    Example: outliers sweep data/smollm2.zarr --magnitude 1:40:0.5 --plot sweep.svg
    """
    criteria = _criteria(
        preset,
        signal=signal,
        counting=counting,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        scale=scale,
    )
    chosen = [
        None if text is None else arguments.numbers(text, name)
        for name, text in (("magnitude", magnitude), ("layers", layers), ("positions", positions))
    ]
    if plot is not None:
        from analyze.figures import check_suffix

        check_suffix(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.progress import shown
    from analyze.sweeps import sweep as run

    with running(scheduler, workers), shown("reading activations") as progress:
        result = run(store, criteria, *chosen, progress=progress)
    if csv is not None:
        from analyze.tables import write_csv

        write_csv(csv, result.rows)
    if plot is not None:
        from analyze.figures import save, sweep_figure

        save(sweep_figure(result), plot)
    if json_:
        _print_json(result.to_dict())
    else:
        from analyze.tables import print_sweep

        print_sweep(result)


@app.command()
def metrics(
    store: StorePath,
    preset: Preset = "dettmers",
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    json_: Json = False,
) -> None:
    """Measure massive activations, kurtosis, channel maxima and sinks layer by layer, and Dettmers' Table 4.

    Example: outliers metrics data/smollm2.zarr --signal input
    """
    criteria = _criteria(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
    )
    from analyze.cluster import scheduler as running
    from analyze.dettmers import dettmers_table
    from analyze.find import as_dataset
    from analyze.metrics import extreme_tokens, layer_metrics, metric_rows
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading activations") as progress:
        data = as_dataset(store)
        rows = metric_rows(layer_metrics(data, criteria, progress=progress))
        table = dettmers_table(data, criteria, progress=progress)
        tokens = extreme_tokens(data, criteria)
    if csv is not None:
        from analyze.tables import write_csv

        write_csv(csv, rows)
    if json_:
        from analyze.find import all_jsonable

        _print_json(
            {
                "signal": criteria.signal,
                "layers": all_jsonable(rows),
                "dettmers": table.to_dict(),
                "extreme_tokens": all_jsonable(tokens),
            }
        )
    else:
        from analyze.tables import print_metrics

        print_metrics(rows, table, tokens)


@app.command()
def null(
    store: StorePath,
    preset: Preset = None,
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    repeats: Annotated[int, typer.Option(help="Number of permutations.")] = 20,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Say what the same criterion finds when features are permuted at each layer, site and position.

    Example: outliers null data/smollm2.zarr --preset study --repeats 100
    """
    criteria = _criteria(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        counting=counting,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        scale=scale,
    )
    from analyze.cluster import scheduler as running
    from analyze.null import permutation_null
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading and permuting") as progress:
        result = permutation_null(store, criteria, repeats=repeats, seed=seed, progress=progress)
    if json_:
        _print_json(result.to_dict())
    else:
        from analyze.tables import print_null

        print_null(result)


def _print_rows(rows: list[dict[str, Any]], criteria: Any, json_: bool) -> None:
    if json_:
        from analyze.find import all_jsonable

        _print_json({"criteria": criteria.to_dict(), "rows": all_jsonable(rows)})
    else:
        from analyze.tables import print_rows

        print_rows(
            rows,
            f"|x| >= {criteria.magnitude:g} in at least {criteria.layers * 100:g}% of layer units "
            f"and at {criteria.positions * 100:g}% of positions",
        )


def _print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, allow_nan=False, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : words after `outliers`; those of the process where None

    Returns
    -------
    exit status: 0 done, 2 the user can mend it (told in one line on standard error), 130 interrupted
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(app)
    try:
        with command.make_context("outliers", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        # The reader has seen enough. What is left in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OutliersError as error:
        return _complain(str(error))
    except OSError as error:
        # Permissions, a file in place of a folder, a disk that is gone: the user's to mend, wherever it surfaces.
        where = "" if error.filename is None else f" {error.filename}"
        return _complain(f"cannot use{where} ({error.strerror or error}); check the path, its permissions and its disk")
    except (KeyboardInterrupt, typer.Abort):
        print("outliers: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # Typer brings its own copy of click or uses the package, by version; both words for usage errors have this.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(str(message()))
    return 0


def _complain(message: str) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    print(f"outliers: {line}", file=sys.stderr)
    return 2


register(app)

if __name__ == "__main__":
    sys.exit(main())
