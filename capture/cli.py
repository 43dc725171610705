"""The capture side of the command line: thin shells over public functions, free of torch until one of them runs."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from capture.schema import OutliersError

Model = Annotated[
    str, typer.Argument(help="Hugging Face id, local folder, .gguf file, or smollm2-135m.", show_default=False)
]
_HEAVY = ("torch", "transformers", "nnsight")


def register(app: typer.Typer) -> None:
    """Mount the capture commands on the `outliers` command."""
    app.command("capture")(capture_command)


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


def capture_command(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder of the store to make or to go on with.", show_default=False)],
    text: Annotated[
        str,
        typer.Option(help="fineweb-edu, c4, hf:ORG/NAME, python-docs, or a .txt, .jsonl, .jsonl.gz or .parquet file."),
    ] = "fineweb-edu",
    sequences: Annotated[int, typer.Option(help="Number of token blocks.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens in each block.")] = 2048,
    batch_size: Annotated[int, typer.Option(help="Blocks that go through the model together.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto (all GPUs, else the CPU), cpu, cuda:0, ...")] = "auto",
    raw: Annotated[str, typer.Option(help="Activations to keep: input, output, both, or none for peaks alone.")] = "input",
    part: Annotated[str, typer.Option(help="I/K: capture only the I-th of K disjoint shares.")] = "1/1",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="A BOS token first in each block.", show_default="as the tokenizer does"),
    ] = None,
    compression: Annotated[str, typer.Option(help="fast, small or none; lossless all three.")] = "fast",
    sites: Annotated[
        str | None,
        typer.Option(help="Where to read, for a model whose norms the probe cannot place.", show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code that the checkpoint brings along.")
    ] = False,
) -> None:
    """Run a model over a text once and keep what enters its norms in a Zarr store.

    Example: outliers capture smollm2-135m --text python-docs --length 1024 --out data/smollm2.zarr
    """
    require_capture_extra()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars are no plain lines
    from capture.progress import Display
    from capture.run import capture

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
    typer.echo(f"captured in {out}; next: outliers find {out}")
