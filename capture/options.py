"""Words of the command line that the commands share which run a model: a capture's, and those that run it again."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto (all GPUs, else the CPU), cpu, cuda:0, ...")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the model code that the checkpoint brings along.")
]
StoreModel = Annotated[
    str | None, typer.Option(help="Where the store's model is now.", show_default="as the store says")
]
FewSequences = Annotated[
    int | None, typer.Option(help="How many sequences of the store to run.", show_default="4, or all of fewer")
]
Seed = Annotated[int, typer.Option(help="Where the randomness starts.")]
