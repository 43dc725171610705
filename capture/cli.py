"""The capture side of the command line: thin shells over public functions, free of torch until one of them runs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from capture.ablate_command import ablate_command
from capture.schema import OutliersError

Model = Annotated[
    str,
    typer.Argument(
        help="Hugging Face id, local folder, .gguf file, or smollm2-135m; random:MODEL or random:CONFIG.json draws "
        "random weights.",
        show_default=False,
    ),
]
_HEAVY = ("torch", "transformers", "nnsight")


def register(app: typer.Typer) -> None:
    """Mount the capture commands on the `outliers` command."""
    app.command("capture")(capture_command)
    app.command("sites")(sites_command)
    app.command("estimate")(estimate_command)
    app.command("verify")(verify_command)
    app.command("ablate")(ablate_command)


def require_capture_extra() -> None:
    """Refuse where the packages of the capture stage are not installed.

    Raises
    ------
    OutliersError
        One of them is missing.
    """
    missing = [name for name in _HEAVY if importlib.util.find_spec(name) is None]
    if missing:
        raise OutliersError(
            f"{' and '.join(missing)} not installed, which running a model needs; "
            "install with: pip install 'outlier-features[capture]'"
        )


def parse_part(part: str) -> tuple[int, int]:
    """The two numbers of `--part I/K`.

    Raises
    ------
    OutliersError
        The text is not two whole numbers with a slash between them.
    """
    number, slash, parts = part.partition("/")
    if not slash or not number.isdecimal() or not parts.isdecimal():
        raise OutliersError(f"--part {part} is no part; expected I/K with I from 1 to K, such as 1/4")
    return int(number), int(parts)


def _prepare() -> None:
    """Check what running a model needs, and keep the libraries' own talk off standard error."""
    require_capture_extra()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # their bars are no plain lines
    from capture.models import silence_libraries

    silence_libraries()


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
SequencesOption = Annotated[int, typer.Option("--sequences", help="Number of token blocks.")]
Length = Annotated[int, typer.Option(help="Tokens in each block.")]
BatchSize = Annotated[int, typer.Option(help="Blocks that go through the model together.")]
Dtype = Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")]
Raw = Annotated[str, typer.Option(help="Activations to keep: input, output, both, or none for peaks alone.")]
Compression = Annotated[str, typer.Option(help="fast, small or none; all three lossless.")]
SitesOption = Annotated[
    str | None,
    typer.Option("--sites", help="Where to read, for a model whose norms the probe cannot place.", show_default=False),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model code that the checkpoint brings along.")
]


def capture_command(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the store to make or to go on with.", show_default=False)],
    text: Annotated[
        str,
        typer.Option(help="fineweb-edu, c4, hf:ORG/NAME, python-docs, or a .txt, .jsonl, .jsonl.gz or .parquet file."),
    ] = "fineweb-edu",
    sequences: SequencesOption = 16,
    length: Length = 2048,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    device: Annotated[str, typer.Option(help="auto (all GPUs, else the CPU), cpu, cuda:0, ...")] = "auto",
    raw: Raw = "input",
    part: Annotated[str, typer.Option(help="I/K: capture only the I-th of K disjoint shares.")] = "1/1",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
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
    _prepare()
    from capture.progress import Display
    from capture.run import capture
    from capture.store import StoreWriter

    try:
        with Display() as display:
            capture(
                model,
                out,
                text=text,
                sequences=sequences,
                length=length,
                batch_size=batch_size,
                dtype=dtype,
                device=device,
                raw=raw,
                part=parse_part(part),
                overwrite=overwrite,
                bos=bos,
                compression=compression,
                sites=sites,
                trust_remote_code=trust_remote_code,
                reporter=display,
            )
    except KeyboardInterrupt:
        how = "without --overwrite goes on" if overwrite else "goes on"
        typer.echo(f"outliers: interrupted; finished sequences are safe, and the same command {how}", err=True)
        raise typer.Exit(130) from None
    done = StoreWriter(out).done()
    if done.all():
        typer.echo(f"captured in {out}; next: outliers find {out}")
    else:
        typer.echo(f"part {part} is captured in {out}, {done.sum()} of {done.size} sequences; next: the other parts")


def sites_command(
    model: Model, sites: SitesOption = None, trust_remote_code: Trust = False, json_: Json = False
) -> None:
    """List the modules that a capture would read, from the model's configuration alone.

    Example: outliers sites smollm2-135m
    """
    _prepare()
    from capture.models import load_config
    from capture.progress import Display
    from capture.sites import parse_overrides, sites_from_config

    overrides = None if sites is None else parse_overrides(sites)
    config = load_config(model, trust_remote_code=trust_remote_code, reporter=Display())
    placed = sites_from_config(config, overrides, trust_remote_code=trust_remote_code)
    if json_:
        typer.echo(json.dumps({"hidden_size": placed.hidden_size, "sites": placed.table()}, indent=1))
        return
    rows = [("layer", "site", "module", "kind", "feeds")]
    rows += [
        (str(row["layer"]), str(row["name"]), str(row["module"]), str(row["kind"]), ", ".join(row["feeds"]))
        for row in placed.table()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]))


def estimate_command(
    model: Model,
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
    _prepare()
    from capture.estimate import estimate
    from capture.progress import Display

    found = estimate(
        model,
        sequences=sequences,
        length=length,
        batch_size=batch_size,
        dtype=dtype,
        raw=raw,
        compression=compression,
        sites=sites,
        trust_remote_code=trust_remote_code,
        reporter=Display(),
    )
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
    from capture.verify import verify

    result = verify(store, repair=repair)
    for damage in result.damage:
        typer.echo(str(damage))
    if result.damage:
        redo = sorted({damage.sequence for damage in result.damage if damage.sequence is not None})
        advice = (
            f"run the same outliers capture again to redo sequences {', '.join(map(str, redo))}"
            if repair and redo
            else f"take damaged sequences back with: outliers verify {store} --repair"
            if redo
            else "restore the files named above from a copy"
        )
        raise OutliersError(f"{store} is damaged in {len(result.damage)} places; {advice}")
    whole = "" if result.done == result.sequences else ", unfinished"
    typer.echo(
        f"{store} is sound{whole}: {result.done} of {result.sequences} sequences captured, every chunk read back"
    )
