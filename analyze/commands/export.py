"""`outliers export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyze.commands.options import OF_CRITERIA_ALONE, Json, StorePath, asks_for_criteria
from analyze.commands.output import print_json

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


@asks_for_criteria(without=OF_CRITERIA_ALONE)
def export(
    store: StorePath,
    criteria: Criteria,
    smoothquant: Annotated[
        Path, typer.Option(help="Write the channel maxima to this .safetensors file.", show_default=False)
    ],
    json_: Json = False,
) -> None:
    """Write the channel maxima that SmoothQuant calibrates with, under the names of the model's modules.

    Example: outliers export data/smollm2.zarr --smoothquant maxima.safetensors
    """
    from analyze.commands.progress import shown
    from analyze.quantization.export import export as run

    with shown("reading activations") as progress:
        names = run(store, smoothquant=smoothquant, view=criteria.view, progress=progress)
    if json_:
        print_json({"file": str(smoothquant), "names": names})
    else:
        print(f"{len(names):,} tensors written to {smoothquant}, such as {names[0]}")
