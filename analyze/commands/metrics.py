"""`outliers metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.options import Csv, Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.printing import print_json

if TYPE_CHECKING:
    from analyze.criteria import Criteria


@asks_for_criteria(preset="dettmers", without=("counting", "scale"))
def metrics(
    store: StorePath,
    criteria: Criteria,
    scheduler: Scheduler = None,
    workers: Workers = None,
    csv: Csv = None,
    json_: Json = False,
) -> None:
    """Measure massive activations, kurtosis, channel maxima and sinks layer by layer, and Dettmers' Table 4.

    Example: outliers metrics data/smollm2.zarr --signal input
    """
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
