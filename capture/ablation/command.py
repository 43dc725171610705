"""`outliers ablate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import Json, StorePath, asks_for_criteria
from capture.options import Device, FewSequences, Seed, StoreModel, Trust
from capture.stderr import tell

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria(preset="dettmers", without=("sequences",))
def ablate_command(
    store: StorePath,
    criteria: Criteria,
    site: Annotated[str, typer.Option(help="Before which sublayers: ln_attn, ln_mlp or both.")] = "ln_attn",
    sequences: FewSequences = None,
    repeats: Annotated[int, typer.Option(help="Draws of as many random other features.")] = 5,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Sequences that go through the model together.")] = 1,
    model: StoreModel = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run again what the store has the answer to.")] = False,
    json_: Json = False,
) -> None:
    """Run the store's model again without its outlier features, and without as many random others.

    Which features are outliers is Dettmers' criterion, as in the paper, unless another is given.

    Example: outliers ablate data/smollm2.zarr
    """
    from capture.environment import prepare

    prepare()
    from analyze.commands.output import print_or_json
    from analyze.commands.progress import shown
    from capture.ablation.measure import ablate

    try:
        with shown("passes") as progress:
            result = ablate(
                store,
                criteria,
                model=model,
                device=device,
                sequences=sequences,
                repeats=repeats,
                seed=seed,
                batch_size=batch_size,
                site=site,
                trust_remote_code=trust_remote_code,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        tell("outliers: interrupted; finished sequences are safe, and the same command goes on")
        raise typer.Exit(130) from None
    print_or_json(result, json_)
