"""`outliers pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze.commands.options import KeepPaths
from capture.stderr import tell


def pack(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder made by outliers capture.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="File to write, ending in .zarr.zip.", show_default=False)],
    peaks_only: Annotated[
        bool, typer.Option("--peaks-only", help="Leave out the raw activations: small enough to mail.")
    ] = False,
    mantissa_bits: Annotated[
        int | None,
        typer.Option(
            help="Round raw activations to so many: smaller, labelled, peaks stay exact.", show_default="exact"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    keep_paths: KeepPaths = False,
) -> None:
    """Pack a store into one file that is readable in place; the same store gives the same bytes.

    Example: outliers pack data/smollm2.zarr --out smollm2.zarr.zip --peaks-only
    """
    from analyze.commands.progress import shown
    from analyze.display.text import plain, size
    from analyze.sharing.pack import pack as run

    with shown("reading back") as progress:
        packed = run(
            store,
            out,
            peaks_only=peaks_only,
            mantissa_bits=mantissa_bits,
            overwrite=overwrite,
            keep_paths=keep_paths,
            progress=progress,
            report=lambda line: tell(plain(line)),
        )
    kept = "peaks, tokens and losses" if peaks_only else "everything"
    if mantissa_bits is not None:
        kept += f", activations rounded to {mantissa_bits} mantissa bits,"
    typer.echo(f"packed {kept} of {store} in {packed}, {size(packed.stat().st_size)}")
