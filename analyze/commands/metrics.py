"""`outliers metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyze.commands.options import Csv, Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import print_json
from capture.store.output import output_file

if TYPE_CHECKING:
    from analyze.answers.table4 import DettmersTable
    from analyze.question.criteria import Criteria


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
    from analyze.answers.metrics import extreme_tokens, layer_metrics, metric_rows
    from analyze.answers.table4 import dettmers_table
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.reading.open import as_dataset

    if csv is not None:
        output_file(csv)
    with running(scheduler, workers), shown("reading activations") as progress:
        data = as_dataset(store)
        rows = metric_rows(layer_metrics(data, criteria, progress=progress))
        table = dettmers_table(data, criteria, progress=progress)
        tokens = extreme_tokens(data, criteria)
    if csv is not None:
        from analyze.display.tables import write_csv

        write_csv(csv, rows)
    if json_:
        from analyze.display.text import jsonable

        print_json(
            {
                "signal": criteria.signal,
                "layers": jsonable(rows),
                "dettmers": table.to_dict(),
                "extreme_tokens": jsonable(tokens),
            }
        )
    else:
        print_metrics(rows, table, tokens)


def print_metrics(rows: list[dict[str, Any]], table: DettmersTable, tokens: list[dict[str, Any]]) -> None:
    """Layer by layer, then Table 4, then the tokens with the largest magnitudes."""
    from analyze.display.tables import print_result, print_rows

    print_rows(rows)
    print()
    print_result(table)
    print()
    print_rows(tokens, title="tokens with the largest magnitudes")
