"""The capture side of the command line: thin shells over public functions, free of torch until one of them runs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capture.ablation.command import ablate_command
from capture.ablation.weight_command import weight_command
from capture.environment import prepare
from capture.errors import OutliersError, advice
from capture.options import Device, Trust
from capture.quantization.command import quantize_command
from capture.stderr import tell
from capture.store.output import results_folder

if TYPE_CHECKING:
    from capture.recipes.forecast import Forecast
    from capture.recipes.run import Outcome

Model = Annotated[
    str,
    typer.Argument(
        help="Hugging Face id, local folder, .gguf file, or smollm2-135m; random:MODEL or random:CONFIG.json draws "
        "random weights.",
        show_default=False,
    ),
]


Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a model on the hub.", show_default="main"),
]


def register(app: typer.Typer) -> None:
    """Mount the capture commands on the `outliers` command."""
    app.command("capture")(capture_command)
    app.command("sites")(sites_command)
    app.command("estimate")(estimate_command)
    app.command("verify")(verify_command)
    app.command("quantize")(quantize_command)
    app.command("ablate")(ablate_command)
    app.command("weight")(weight_command)
    app.command("run")(run_command)


def parse_part(part: str) -> tuple[int, int]:
    """The two numbers of `--part I/K`.

    Raises
    ------
    OutliersError
        The text is not two whole numbers with a slash between them.
    """
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    if numbers is None:
        raise OutliersError(f"--part {part} is no part; expected I/K with I from 1 to K, such as 1/4")
    return int(numbers[1]), int(numbers[2])


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
SequencesOption = Annotated[int, typer.Option("--sequences", help="Number of token blocks; of documents the most.")]
Length = Annotated[int, typer.Option(help="Tokens in each block; documents are cut behind so many.")]
BatchSize = Annotated[int, typer.Option(help="Blocks that go through the model together.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")]
Raw = Annotated[str, typer.Option(help="Activations to keep: input, output, both, or none for peaks alone.")]
Compression = Annotated[str, typer.Option(help="fast, small or none; all three lossless.")]
SitesOption = Annotated[
    str | None,
    typer.Option("--sites", help="Where to read, for a model whose norms the probe cannot place.", show_default=False),
]


def capture_command(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the store to make or to go on with.", show_default=False)],
    revision: Revision = None,
    text: Annotated[
        str,
        typer.Option(help="fineweb-edu, c4, hf:ORG/NAME, python-docs, or .txt, .jsonl, .json.gz, .parquet files."),
    ] = "fineweb-edu",
    field: Annotated[
        str | None,
        typer.Option(help="Of records: text, or lists of token ids.", show_default="text, or messages with --chat"),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Documents are messages, for the tokenizer's own chat template.")
    ] = False,
    special_tokens: Annotated[
        str, typer.Option(help="Where text spells a special token: text keeps it text, parse makes it the token.")
    ] = "text",
    documents: Annotated[
        bool, typer.Option("--documents", help="Each document is a sequence of its own, not part of joined blocks.")
    ] = False,
    sequences: SequencesOption = 16,
    length: Length = 2048,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    device: Device = "auto",
    max_memory: Annotated[
        str | None, typer.Option(help="What auto may put where: 0=20GiB,cpu=60GiB; the rest stays on disk.")
    ] = None,
    raw: Raw = "input",
    part: Annotated[str, typer.Option(help="I/K: capture only the I-th of K disjoint shares.")] = "1/1",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing store, once the new one is finished.")
    ] = False,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="A BOS token first in each block.", show_default="as the tokenizer does"),
    ] = None,
    compression: Compression = "fast",
    sites: SitesOption = None,
    trust_remote_code: Trust = False,
) -> None:
    """Run a model over a text once and keep what enters its norms in a Zarr store.

    Example: outliers capture smollm2-135m --text python-docs --length 1024 --out data/smollm2.zarr
    """
    options = locals()
    prepare()
    from capture.progress import Display
    from capture.request import Request
    from capture.run import capture
    from capture.store.write import StoreWriter

    request = Request.among(options)
    replaces = overwrite and out.exists()
    try:
        with Display() as display:
            share = parse_part(part)
            capture(out=out, part=share, overwrite=overwrite, reporter=display, **request.arguments(capture))
    except KeyboardInterrupt:
        there = f"; {out} is still the earlier store" if replaces else ""
        tell(f"outliers: interrupted; finished sequences are safe, and the same command goes on{there}")
        raise typer.Exit(130) from None
    done = StoreWriter(out).done()
    if done.all():
        typer.echo(f"captured in {out}; next: {advice('find', out)}")
    else:
        typer.echo(f"part {part} is captured in {out}, {done.sum()} of {done.size} sequences; next: the other parts")


def sites_command(
    model: Model,
    revision: Revision = None,
    sites: SitesOption = None,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """List the modules that a capture would read, from the model's configuration alone.

    Example: outliers sites smollm2-135m
    """
    prepare()
    from capture.models.load import load_config
    from capture.progress import Display
    from capture.sites.place import parse_overrides, sites_from_config

    overrides = None if sites is None else parse_overrides(sites)
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code, reporter=Display())
    placed = sites_from_config(config, overrides, trust_remote_code=trust_remote_code)
    if json_:
        typer.echo(json.dumps({"hidden_size": placed.hidden_size, "sites": placed.table()}, indent=1))
        return
    rows = [("layer", "site", "module", "kind", "feeds")]
    rows += [
        (str(row["layer"]), str(row["name"]), str(row["module"]), str(row["kind"]), ", ".join(row["feeds"]))
        for row in placed.table()
    ]
    _print_columns(rows)


def estimate_command(
    model: Model,
    revision: Revision = None,
    sequences: SequencesOption = 16,
    length: Length = 2048,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    raw: Raw = "input",
    compression: Compression = "fast",
    sites: SitesOption = None,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Predict disk and memory of a capture before anything runs.

    Example: outliers estimate smollm2-135m --sequences 16 --length 1024
    """
    options = locals()
    prepare()
    from capture.estimate import estimate
    from capture.progress import Display
    from capture.request import Request

    found = estimate(**Request.among(options).arguments(estimate), reporter=Display())
    if json_:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    sizes = found.sizes
    typer.echo(
        f"{sizes.sequences} x {sizes.positions} tokens, {sizes.layers} layers with {len(sizes.sites)} sites, "
        f"{sizes.features} features, computed in {found.dtype}"
    )
    typer.echo(f"store            {found.store_bytes / 1e9:10.2f} GB on disk, about")
    typer.echo(f"weights          {found.weight_bytes / 1e9:10.2f} GB of memory, unquantised")
    typer.echo(f"beside weights   {found.working_bytes / 1e9:10.2f} GB of memory, at least")


def verify_command(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder made by outliers capture.", show_default=False)
    ],
    repair: Annotated[
        bool, typer.Option("--repair", help="Take back damaged sequences, so that the same capture redoes them.")
    ] = False,
) -> None:
    """Read every chunk back: checksums, schema, and peaks against raw values.

    Example: outliers verify data/smollm2.zarr
    """
    from capture.store.verify import verify

    result = verify(store, repair=repair)
    with contextlib.suppress(BrokenPipeError):  # damage is an error, whether or not all of the list is read
        for damage in result.damage:
            typer.echo(str(damage))
        for name in result.strangers:
            typer.echo(f"no file of the store, and never shared: {name!r}")
    if result.damage:
        redo = sorted({damage.sequence for damage in result.damage if damage.sequence is not None})
        remedy = (
            f"run the same outliers capture again to redo sequences {', '.join(map(str, redo))}"
            if repair and redo
            else f"take damaged sequences back with: {advice('verify', store, '--repair')}"
            if redo
            else "restore the files named above from a copy"
        )
        places = "1 place" if len(result.damage) == 1 else f"{len(result.damage)} places"
        raise OutliersError(f"{store} is damaged in {places}; {remedy}")
    whole = "" if result.done == result.sequences else ", unfinished"
    typer.echo(
        f"{store} is sound{whole}: {result.done} of {result.sequences} sequences captured, every chunk read back"
    )
    if result.unchecked is not None:
        typer.echo(f"not checked: {result.unchecked}")


def run_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Models and options.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder for everything.", show_default="the recipe's name")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of one model; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what disk it takes.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going/--stop-at-failure", help="Go on with the next model after one that failed.")
    ] = True,
    clean_cache: Annotated[
        bool, typer.Option("--clean-cache", help="Remove a model from the hub's cache once its store is verified.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Allow the code of those models of which the recipe says that it has to run."
        ),
    ] = False,
) -> None:
    """Capture and analyse a list of models; the same command goes on where an earlier one stopped.

    Example: outliers run data/recipes/offline.toml --out data/offline
    """
    prepare()
    from capture.progress import Display
    from capture.recipes.forecast import check_room, forecast
    from capture.recipes.process import terminate_like_ctrl_c
    from capture.recipes.recipe import read_recipe
    from capture.recipes.run import check_permission, run_recipe

    read = read_recipe(recipe)
    if not dry_run:
        check_permission(read, only or (), trust_remote_code)
    folder = results_folder(recipe.stem if out is None else out)
    forecasts = forecast(read, folder, Display(), only or ())
    if dry_run:
        _print_forecasts(forecasts)
    check_room(forecasts, folder)
    if dry_run:
        hopeless = [item.name for item in forecasts if item.failed]
        if hopeless:
            raise OutliersError(
                f"{len(hopeless)} of {len(forecasts)} models would fail ({', '.join(hopeless)}); see the table"
            )
        return
    terminate_like_ctrl_c()
    try:
        results = run_recipe(
            read,
            folder,
            only=only or (),
            keep_going=keep_going,
            clean_cache=clean_cache,
            trust_remote_code=trust_remote_code,
            tell=tell,
        )
    except KeyboardInterrupt:
        tell("outliers: interrupted; what is finished is safe, and the same command goes on")
        raise typer.Exit(130) from None
    with contextlib.suppress(BrokenPipeError):  # as in verify
        _print_outcomes(results.models)
    failures = results.failures()
    for name, reason in failures.items():
        tell(f"failed: {name}: {reason}")
    if failures:
        raise OutliersError(
            f"{len(failures)} failed of {len(results.models)} models and their comparison ({', '.join(failures)}); "
            "mend what the lines above say and give the same command again"
        )
    typer.echo(f"everything is in {folder}")


def _print_forecasts(forecasts: Sequence[Forecast]) -> None:
    known = [item.missing_bytes for item in forecasts if item.missing_bytes is not None]
    rows = [("name", "GB to write", "")]
    rows += [
        (item.name, "?" if item.missing_bytes is None else f"{item.missing_bytes / 1e9:.2f}", item.note)
        for item in forecasts
    ]
    _print_columns([*rows, ("total", f"{sum(known) / 1e9:.2f}", "")])


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    presets = list(dict.fromkeys(preset for outcome in outcomes for preset in outcome.found))
    rows = [("name", "status", "seconds", "GB", *(f"outliers ({preset})" for preset in presets))]
    for outcome in outcomes:
        counts = (str(outcome.found[preset]["count"]) if preset in outcome.found else "-" for preset in presets)
        size = f"{outcome.store_bytes / 1e9:.2f}" if outcome.store_bytes else "-"
        rows.append((outcome.name, outcome.status, f"{outcome.seconds:.0f}", size, *counts))
    _print_columns(rows)


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
