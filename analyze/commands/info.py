"""`outliers info`."""

from __future__ import annotations

from typing import Annotated

import typer

from analyze.commands.options import Json, StorePath
from analyze.commands.output import print_or_json


def info(
    store: StorePath,
    command: Annotated[
        bool, typer.Option("--command", help="Print the command that captures the same again, and nothing else.")
    ] = False,
    json_: Json = False,
) -> None:
    """Say what a store holds, and how far its capture is.

    Example: outliers info data/smollm2.zarr
    """
    from analyze.answers.info import store_info
    from analyze.display.text import plain

    facts = store_info(store)
    if command:
        typer.echo(plain(facts.to_command()))
    else:
        print_or_json(facts, json_)
