"""`outliers weight`."""

from __future__ import annotations

from typing import Annotated

import typer

from analyze.commands.options import Json, StorePath


def weight_command(
    store: StorePath,
    feature: Annotated[int, typer.Option(help="Index into the hidden dimension.", show_default=False)],
    sequences: Annotated[
        int | None, typer.Option(help="How many sequences of the store to run.", show_default="4, or all of fewer")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Random other weights of the same size.")] = 5,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="Where the store's model is now.", show_default="as the store says")
    ] = None,
    device: Annotated[str, typer.Option(help="auto (all GPUs, else the CPU), cpu, cuda:0, ...")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the model code that the checkpoint brings along.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find the one weight that writes a feature, and what the model loses without it and without random others.

    Example: outliers weight data/smollm2.zarr --feature 507
    """
    from capture.environment import prepare

    prepare()
    from analyze.commands.output import print_or_json
    from analyze.commands.progress import shown
    from capture.ablation.weight import written_weight

    with shown("passes") as progress:
        result = written_weight(
            store,
            feature,
            model=model,
            device=device,
            sequences=sequences,
            repeats=repeats,
            seed=seed,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    print_or_json(result, json_)
