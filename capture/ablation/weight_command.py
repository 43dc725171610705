"""`outliers weight`."""

from __future__ import annotations

from typing import Annotated

import typer

from analyze.commands.options import Json, StorePath
from capture.options import Device, FewSequences, Seed, StoreModel, Trust


def weight_command(
    store: StorePath,
    feature: Annotated[int, typer.Option(help="Index into the hidden dimension.", show_default=False)],
    sequences: FewSequences = None,
    repeats: Annotated[int, typer.Option(help="Random other weights of the same size.")] = 5,
    seed: Seed = 0,
    model: StoreModel = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
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
