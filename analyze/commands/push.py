"""`outliers push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyze.commands.options import KeepPaths
from capture.stderr import tell


def push(
    store: Annotated[
        Path, typer.Argument(metavar="STORE", help="Folder made by outliers capture.", show_default=False)
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="hf://datasets/ORG/NAME, made where it does not exist, or s3://BUCKET/PREFIX/NAME.zarr.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Folder of the store in the dataset.", show_default="the store's own")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence id of the data, as the Hub knows it.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new dataset private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another store of this name.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show page, files and bytes; leave the network alone.")
    ] = False,
    keep_paths: KeepPaths = False,
) -> None:
    """Upload a store with a page about it; the same command goes on where an upload stopped.

    Example: outliers push data/smollm2.zarr hf://datasets/ORG/NAME --license cc-by-4.0 --dry-run
    """
    from analyze.commands.progress import shown
    from analyze.display.text import plain, size
    from analyze.sharing.card import UNKNOWN, picture_name
    from analyze.sharing.push import push as run

    with shown("reading back") as progress:
        pushed = run(
            store,
            target,
            name=name,
            licence=licence,
            private=private,
            overwrite=overwrite,
            dry_run=dry_run,
            keep_paths=keep_paths,
            progress=progress,
            report=lambda line: tell(plain(line)),
        )
    card = pushed.card
    if dry_run:
        if card is not None:
            typer.echo(card.page())
        for file in pushed.files:
            typer.echo(f"{file.size:>15,}  {pushed.url}/{file.name}")
        if card is not None:
            folder = pushed.url.rpartition("/")[0]
            typer.echo(f"{len(card.picture):>15,}  {folder}/{picture_name(card.name)}")
            typer.echo(f"{len(card.page().encode()):>15,}  {folder}/README.md")
    if card is not None and card.licence == UNKNOWN:
        tell("outliers: the page says that the licence of the data is unknown; name it with --license")
    done = "would upload" if dry_run else "uploaded"
    typer.echo(f"{done} {len(pushed.files):,} files, {size(pushed.bytes)}, to {pushed.url}")
