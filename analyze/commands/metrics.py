"""`outliers metrics`."""

from __future__ import annotations

from analyze.options import (
    Csv,
    Json,
    LayerRange,
    Layers,
    LayerUnit,
    Magnitude,
    Positions,
    Preset,
    Rounding,
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


def metrics(
    store: StorePath,
    preset: Preset = "dettmers",
    magnitude: Magnitude = None,
    layers: Layers = None,
    positions: Positions = None,
    signal: Signal = None,
    layer_unit: LayerUnit = None,
    layer_range: LayerRange = None,
    sites: Sites = None,
    sequences: Sequences = None,
    skip_first: SkipFirst = None,
    rounding: Rounding = None,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    json_: Json = False,
) -> None:
    """Measure massive activations, kurtosis, channel maxima and sinks layer by layer, and Dettmers' Table 4.

    Example: outliers metrics data/smollm2.zarr --signal input
    """
    criteria = criteria_of(
        preset,
        magnitude=magnitude,
        layers=layers,
        positions=positions,
        signal=signal,
        layer_unit=layer_unit,
        layer_range=layer_range,
        sites=sites,
        sequences=sequences,
        skip_first=skip_first,
        rounding=rounding,
    )
    from analyze.cluster import scheduler as running
    from analyze.dettmers import dettmers_table
    from analyze.find import as_dataset
    from analyze.metrics import extreme_tokens, layer_metrics, metric_rows
    from analyze.progress import shown

    with running(scheduler, workers), shown("reading activations") as progress:
        data = as_dataset(store)
        rows = metric_rows(layer_metrics(data, criteria, progress=progress))
        table = dettmers_table(data, criteria, progress=progress)
        tokens = extreme_tokens(data, criteria)
    if csv is not None:
        from analyze.tables import write_csv

        write_csv(csv, rows)
    if json_:
        from analyze.find import all_jsonable

        print_json(
            {
                "signal": criteria.signal,
                "layers": all_jsonable(rows),
                "dettmers": table.to_dict(),
                "extreme_tokens": all_jsonable(tokens),
            }
        )
    else:
        from analyze.tables import print_metrics

        print_metrics(rows, table, tokens)
