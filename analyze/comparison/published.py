"""Published numbers as data: each table a CSV file as printed, beside a TOML file that says what it is."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from analyze.display.shown import Shown
from analyze.question.criteria import Criteria
from capture.errors import OutliersError

TABLES: Final = ("study_moe", "study_dense", "dettmers2022_table4")
DOUBT: Final = "*"

_INSTALLED: Final = Path(__file__).parent / "published_tables"  # see force-include in pyproject.toml
_CHECKOUT: Final = Path(__file__).parents[2] / "data" / "published"

_SIZES: Final = {"M": 6, "B": 9}

# What a cell as printed stands for, by decimal arithmetic: 32.3% is the float 0.323, and 30.5 billion a whole number.
KINDS: Final[dict[str, Callable[[str], Any]]] = {
    "text": str,
    "integer": int,
    "number": float,
    "percent": lambda cell: float(Decimal(cell).scaleb(-2)),
    "billions": lambda cell: int(Decimal(cell).scaleb(9)),
    "magnitude": lambda cell: int(Decimal(cell[:-1]).scaleb(_SIZES[cell[-1]])),
}


@dataclass(frozen=True)
class PublishedTable(Shown):
    """A table of a publication.

    Parameters
    ----------
    name : one of `TABLES`
    title, source : what it shows, and where it was printed
    kind : `moe` or `dense` (of the study), or `dettmers`
    criteria : the convention that the numbers were counted with, as far as a criterion can say it
    notes : what a reader must know beside
    models : one record a model, in the order printed. Keys are the toolkit's words (`model`, `total_parameters`,
        `count`, `mean_layer_fraction` ...), numbers are numbers, percentages are fractions; `doubtful` names the
        columns that the publication marks with an asterisk
    printed : the same rows as text, cell by cell as printed
    """

    name: str
    title: str
    source: str
    kind: str
    criteria: Criteria
    notes: tuple[str, ...]
    models: tuple[dict[str, Any], ...] = field(repr=False)
    printed: tuple[dict[str, str], ...] = field(repr=False)

    def summary(self) -> list[tuple[str, str]]:
        """Title and source."""
        return [("table", self.title), ("source", self.source)]

    def rows(self) -> list[dict[str, Any]]:
        """One record a model."""
        return list(self.models)

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The table as printed."""
        return [("", list(self.printed))]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "kind": self.kind,
            "criteria": self.criteria.to_dict(),
            "notes": list(self.notes),
            "rows": [{**row, "doubtful": list(row["doubtful"])} for row in self.models],
        }


def published(table: str) -> PublishedTable:
    """A published table, with its source and its convention.

    Parameters
    ----------
    table : `study_moe`, `study_dense` (the 2025 study) or `dettmers2022_table4` (LLM.int8(), Table 4)

    Raises
    ------
    OutliersError
        Another name.

    Notes
    -----
    How the study counted, and what of it `Criteria.preset("study")` repeats, is in `docs/study.md`.

    Examples
    --------
    >>> published("study_dense").rows()[0]["count"]
    9212
    """
    if table not in TABLES:
        raise OutliersError(f"published table {table!r} is unknown; expected one of {', '.join(TABLES)}")
    folder = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    about = tomllib.loads((folder / f"{table}.toml").read_text(encoding="utf-8"))
    with (folder / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        printed = tuple(csv.DictReader(file))
    return PublishedTable(
        name=table,
        title=about["title"],
        source=about["source"],
        kind=about["kind"],
        criteria=Criteria(**about["convention"]),
        notes=tuple(about["notes"]),
        models=tuple(_row(row, about["columns"]) for row in printed),
        printed=printed,
    )


def _row(printed: dict[str, str], columns: dict[str, dict[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    doubtful = []
    for name, about in columns.items():
        cell = printed[about["column"]]
        if about["kind"] != "text" and cell.endswith(DOUBT):
            doubtful.append(name)
            cell = cell.removesuffix(DOUBT)
        row[name] = KINDS[about["kind"]](cell)
    return {**row, "doubtful": tuple(doubtful)}
