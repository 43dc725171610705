"""`outliers map`."""

from __future__ import annotations

from pathlib import Path
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


def map(
    store: StorePath,
    top: Annotated[int, typer.Option(help="Number of features, the strongest first.")] = 20,
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
    scheduler: Scheduler = None,
    workers: Workers = None,
    plot: Annotated[Path | None, typer.Option(help="Draw to this .png or .svg file.", show_default=False)] = None,
    json_: Json = False,
) -> None:
    """Map the strongest features by layers, with the sign of their peaks.

    Example: outliers map data/smollm2.zarr --top 20 --plot map.png
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
    if plot is not None:
        from analyze.figures import check_path

        check_path(plot)  # before the work, not after it
    from analyze.cluster import scheduler as running
    from analyze.portraits.strongest import feature_map
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading activations") as progress:
        found = feature_map(store, criteria, top=top, progress=progress)
    if plot is not None:
        from analyze.figures import save
        from analyze.portraits.figures import map_figure

        save(map_figure(found), plot)
    if json_:
        print_json(found.to_dict())
    else:
        from analyze.portraits.tables import print_map

        print_map(found)
