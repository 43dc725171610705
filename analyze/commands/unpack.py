"""`outliers unpack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from capture.errors import advice


def unpack(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="File made by outliers pack.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the store to make.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
) -> None:
    """Unpack a store into a folder, after checking names, sizes and checksums.

    Example: outliers unpack smollm2.zarr.zip --out data/smollm2.zarr
    """
    from analyze.commands.progress import shown
    from analyze.sharing.unpack import unpack as run

    with shown("reading back") as progress:
        store = run(archive, out, overwrite=overwrite, progress=progress)
    typer.echo(f"unpacked {store}, every chunk read back; next: {advice('info', store)}")
