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
        from analyze.display.text import all_jsonable

        print_json(
            {
                "signal": criteria.signal,
                "layers": all_jsonable(rows),
                "dettmers": table.to_dict(),
                "extreme_tokens": all_jsonable(tokens),
            }
        )
    else:
        print_metrics(rows, table, tokens)


def print_metrics(rows: list[dict[str, Any]], table: DettmersTable, tokens: list[dict[str, Any]]) -> None:
    """Layer by layer, then Table 4, then the tokens with the largest magnitudes."""
    from analyze.display.tables import print_facts, print_rows
    from analyze.display.text import cell

    print_rows(rows)
    quartiles = "-" if table.quartiles is None else " / ".join(f"{value:.4g}" for value in table.quartiles)
    facts = [
        ("Table 4 of Dettmers et al.", str(table.criteria)),
        ("outliers, one-sided", f"{table.outliers:,}, {table.one_sided:,}"),
        ("layers, positions", f"{cell('fraction', table.layers)}, {cell('fraction', table.positions)}"),
        ("most common outlier", f"{table.most_common}, quartiles of its hits {quartiles}"),
        ("largest outlier", f"{table.largest}, median magnitude of its hits {cell('', table.largest_median)}"),
    ]
    print()
    print_facts(facts if table.outliers else facts[:2])
    print()
    print_rows(tokens, title="tokens with the largest magnitudes")
