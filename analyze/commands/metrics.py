"""`outliers metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyze.commands.options import Csv, Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import check_outputs, print_json

if TYPE_CHECKING:
    from analyze.answers.table4 import DettmersTable
    from analyze.question.criteria import Criteria

Row = dict[str, Any]


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
    from analyze.answers.metrics import layer_metrics, metric_rows
    from analyze.answers.table4 import dettmers_table
    from analyze.answers.tokens import extreme_tokens, outlier_tokens
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running
    from analyze.reading.open import as_dataset

    check_outputs(csv=csv)
    with running(scheduler, workers), shown("reading activations") as progress:
        data = as_dataset(store)
        metrics = layer_metrics(data, criteria, progress=progress)
        table = dettmers_table(data, criteria, progress=progress)
        tokens, outlying = extreme_tokens(data, criteria), outlier_tokens(data, metrics)
    rows = metric_rows(metrics)
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
                "outlier_tokens": jsonable(outlying),
            }
        )
    else:
        print_metrics(rows, table, tokens, outlying)


def print_metrics(rows: list[Row], table: DettmersTable, tokens: list[Row], outlying: list[Row]) -> None:
    """Layer by layer, then Table 4, then the tokens with the largest magnitudes, and those worth leaving out."""
    from analyze.display.tables import print_result, print_rows

    print_rows(rows)
    print()
    print_result(table)
    print()
    print_rows(tokens, title="tokens with the largest magnitudes")
    if outlying:
        print()
        print_rows(outlying, title="worth leaving out: over 64 times as large as the median token (PrefixQuant)")
        words = ",".join(str(row["token_id"]) for row in outlying if row["positions"] > row["first"])
        options = ["--skip-first 1"] * any(row["first"] for row in outlying) + [f"--skip-tokens {words}"] * bool(words)
        print("leave them out with: " + " ".join(options))
