"""`outliers null`."""

from __future__ import annotations

from typing import Annotated

import typer

from analyze.options import (
    Counting,
    Json,
    LayerRange,
    Layers,
    LayerUnit,
    Magnitude,
    Positions,
    Preset,
    Rounding,
    Scale,
    Scheduler,
    Sequences,
    Signal,
    Sites,
    SkipFirst,
    StorePath,
    Workers,
    criteria_of,
)
from analyze.printing import print_json


def null(
    store: StorePath,
    preset: Preset = None,
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    counting: Counting = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    scale: Scale = None,
    rounding: Rounding = None,
    repeats: Annotated[int, typer.Option(help="Number of permutations.")] = 20,
    seed: Annotated[int, typer.Option(help="Where the randomness starts.")] = 0,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Say what the same criterion finds when features are permuted at each layer, site and position.

    Example: outliers null data/smollm2.zarr --preset study --repeats 100
    """
    criteria = criteria_of(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        counting=counting,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        scale=scale,
        rounding=rounding,
    )
    from analyze.cluster import scheduler as running
    from analyze.null import permutation_null
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading and permuting") as progress:
        result = permutation_null(store, criteria, repeats=repeats, seed=seed, progress=progress)
    if json_:
        print_json(result.to_dict())
    else:
        from analyze.tables import print_null

        print_null(result)
