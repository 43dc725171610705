"""`outliers find`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze.commands.options import Json, Scheduler, StorePath, Workers, asks_for_criteria
from analyze.commands.output import print_json

if TYPE_CHECKING:
    from analyze.answers.find import Outliers
    from analyze.question.criteria import Criteria


@asks_for_criteria()
def find(
    store: StorePath,
    criteria: Criteria,
    all_conventions: Annotated[
        bool, typer.Option("--all-conventions", help="One row for each signal, counting, unit, and tokens left out.")
    ] = False,
    scheduler: Scheduler = None,
    workers: Workers = None,
    json_: Json = False,
) -> None:
    """Find the outlier features at one threshold.

    Example: outliers find data/smollm2.zarr --preset study
    """
    from analyze.commands.progress import shown
    from analyze.peaks.scheduler import scheduler as running

    if all_conventions:
        from analyze.answers.conventions import all_conventions as run

        with running(scheduler, workers), shown("reading activations") as progress:
            rows = run(store, criteria, progress=progress)
        _print_rows(rows, criteria, json_)
        return
    from analyze.answers.find import find_outliers

    with running(scheduler, workers), shown("reading activations") as progress:
        found = find_outliers(store, criteria, progress=progress)
    if json_:
        print_json(found.to_dict())
    else:
        print_found(found)


def _print_rows(rows: list[dict[str, Any]], criteria: Any, json_: bool) -> None:
    if json_:
        from analyze.display.text import all_jsonable

        print_json({"criteria": criteria.to_dict(), "rows": all_jsonable(rows)})
    else:
        from analyze.display.tables import print_rows

        print_rows(
            [{**row, "skip_tokens": ", ".join(map(str, row["skip_tokens"]))} for row in rows],
            f"|x| >= {criteria.magnitude:g} in at least {criteria.layers * 100:g}% of layer units "
            f"and at {criteria.positions * 100:g}% of positions",
        )


def print_found(found: Outliers) -> None:
    """The criterion in words, the counts, and the strongest features."""
    from rich.table import Table

    from analyze.display.tables import MOST_ROWS, console, print_facts

    out = console()
    print_facts(found.summary())
    if not found.features:
        return
    table = Table(title=None, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("sequence", "feature", "L%", "S%", "max |x|", "critical |x|"):
        table.add_column(name, justify="right")
    for row in found.features[:MOST_ROWS]:
        table.add_row(
            "all" if row.sequence is None else str(row.sequence),
            str(row.feature),
            f"{row.layer_fraction:.1%}",
            f"{row.position_fraction:.1%}",
            f"{row.max_magnitude:.4g}",
            f"{row.critical_magnitude:.4g}",
        )
    out.print()
    out.print(table)
    if len(found.features) > MOST_ROWS:
        out.print(f"and {len(found.features) - MOST_ROWS:,} more; --json lists them all")
