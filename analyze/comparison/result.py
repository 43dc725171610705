"""A comparison as text: for a terminal, Markdown, CSV, JSON and HTML. Strings from a store are a stranger's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from analyze.answers.facts import ROUNDED_NOTE
from analyze.comparison.bootstrap import STATISTICS
from analyze.comparison.cells import (
    LEFT_COLUMNS,
    MISSING,
    OPTIONAL_COLUMNS,
    STUDY_COLUMNS,
    TABLE4_COLUMNS,
    Row,
    is_unknown,
)
from analyze.comparison.published import PublishedTable
from analyze.comparison.quantised import COLUMNS as QUANTISED_COLUMNS
from analyze.comparison.quantised import TITLE as QUANTISED_TITLE
from analyze.comparison.quantised import Quantised
from analyze.display.shown import Shown
from analyze.display.tables import csv_text
from analyze.display.text import aligned, jsonable, numbered, plain
from analyze.question.criteria import Criteria
from capture.store.files import write_file
from capture.store.privacy import last_part, shortened

TITLES: Final = {
    "moe": "Mixture-of-experts models",
    "dense": "Dense models",
    "table4": "Columns of Table 4 of Dettmers et al. (2022)",
}
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]#|~$])")


def rows_of(comparison: Comparison, table: str) -> list[Row]:
    """Rows of the table `moe`, `dense` or `table4`."""
    return list(getattr(comparison, table))


def displayed(rows: Sequence[Row], table: str) -> list[dict[str, str]]:
    """Rows for a reader: headings and cells as plain text, not yet escaped; no optional columns that say nothing."""
    shown = [
        {heading: form(row) for heading, form in (TABLE4_COLUMNS if table == "table4" else STUDY_COLUMNS)}
        for row in rows
    ]
    silent = [name for name in OPTIONAL_COLUMNS if all(row.get(name) == MISSING for row in shown)]
    return [{name: cell for name, cell in row.items() if name not in silent} for row in shown]


def as_text(comparison: Comparison) -> str:
    """All three tables for a terminal."""
    parts = []
    for table, title in TITLES.items():
        rows = displayed(rows_of(comparison, table), table)
        if rows:
            parts.append(f"{title}: {_criterion(comparison, table)}\n{_aligned(rows)}")
    if comparison.quantised:
        parts.append(f"{QUANTISED_TITLE}\n{_aligned(quantised_rows(comparison))}")
    return "\n\n".join([*parts, *map(plain, _notes(comparison))])


def as_markdown(comparison: Comparison, table: str) -> str:
    """One table, with what a reader must know to read it."""
    about = [f"{markdown(_criterion(comparison, table))}.", ""]
    return _page(TITLES[table], about, displayed(rows_of(comparison, table), table), _notes(comparison, table))


def _page(title: str, about: list[str], rows: list[dict[str, str]], notes: list[str]) -> str:
    lines = [f"# {title}", "", *about]
    if rows:
        names = list(rows[0])
        lines.append("| " + " | ".join(names) + " |")
        lines.append("|" + "|".join("---" if name in LEFT_COLUMNS else "---:" for name in names) + "|")
        lines += ["| " + " | ".join(markdown(cell) for cell in row.values()) + " |" for row in rows]
    else:
        lines.append("No such model.")
    lines += ["", *(f"- {markdown(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def quantised_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Perplexities under quantisers for a reader, store by store."""
    return [row for one in comparison.quantised for row in one.shown]


def public(comparison: Comparison) -> Comparison:
    """The same as it may leave this machine: of every path the last part; models that are alike then are numbered."""
    study = _public_rows(comparison.study)
    named = {row["store"]: (short["model"], short["store"]) for row, short in zip(comparison.study, study, strict=True)}
    quantised = tuple(
        replace(one, model=model, store=store)
        for one in comparison.quantised
        for model, store in [named.get(one.store, (shortened(one.model), last_part(one.store)))]
    )
    return replace(comparison, study=study, table4=_public_rows(comparison.table4), quantised=quantised)


def _public_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    own = [row for row in rows if row["published"] is None]
    models = numbered([shortened(row["model"]) for row in own])
    stores = numbered([last_part(row["store"] or "") for row in own])
    short = [
        {**row, "model": model, "text": shortened(row["text"]), "store": store or None}
        for row, model, store in zip(own, models, stores, strict=True)
    ]
    return (*short, *(row for row in rows if row["published"] is not None))


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every table as Markdown, CSV and JSON.

    Parameters
    ----------
    comparison : from `compare`
    folder : exists

    Returns
    -------
    the files: `moe.md`, `moe.csv`, `moe.json`, the same of `dense` and `table4`, and of `quantised` where perplexities
    under quantisers are known

    Raises
    ------
    OutliersError
        A file cannot be written.
    """
    content = comparison.to_dict()
    about = {name: value for name, value in content.items() if name not in TITLES}
    texts = {}
    for table in TITLES:
        criteria = "dettmers_criteria" if table == "table4" else "criteria"
        texts[f"{table}.md"] = as_markdown(comparison, table)
        texts[f"{table}.csv"] = as_csv(comparison, table)
        texts[f"{table}.json"] = _json(
            {
                "criteria": content[criteria],
                **{name: about[name] for name in ("resamples", "seed", "published")},
                "rows": content[table],
            }
        )
    if comparison.quantised:
        records = [record for one in comparison.quantised for record in one.records]
        notes = _quantised_notes(comparison)
        texts["quantised.md"] = _page(QUANTISED_TITLE, [], quantised_rows(comparison), notes)
        texts["quantised.csv"] = csv_text(QUANTISED_COLUMNS, records)
        texts["quantised.json"] = _json({"stores": content["quantised"]})
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, indent=1) + "\n"


def as_csv(comparison: Comparison, table: str) -> str:
    """One table with every key of its rows; blank where a number is missing."""
    return csv_text(columns(table4=table == "table4"), rows_of(comparison, table))


def markdown(text: str) -> str:
    """A stranger's text as text in Markdown: on one line, no markup, no table border, no HTML, no link, no mention."""
    escaped = _MARKDOWN.sub(r"\\\1", plain(text))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", "&#58;//")):
        escaped = escaped.replace(character, entity)
    return re.sub(r"(?i)\bwww\.", lambda found: found.group()[:-1] + "&#46;", escaped)


def _aligned(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), *([plain(cell) for cell in row.values()] for row in rows)]
    return "\n".join(aligned(lines, [name in LEFT_COLUMNS for name in rows[0]]))


def _criterion(comparison: Comparison, table: str) -> str:
    return str(comparison.dettmers_criteria if table == "table4" else comparison.criteria)


def _notes(comparison: Comparison, table: str | None = None) -> list[str]:
    rows = [row for name in TITLES if table in (None, name) for row in rows_of(comparison, name)]
    own = [row for row in rows if row["published"] is None]
    notes = []
    if any(not is_unknown(row[f"{name}_low"]) for row in own for name in (*STATISTICS, "perplexity")):
        notes.append(
            f"Brackets: 95% intervals of {comparison.resamples:,} bootstrap resamples of whole sequences, "
            f"seed {comparison.seed}."
        )
    if any(row["count"] for row in own):
        notes.append("In parentheses: medians over the outliers, where they differ from the means.")
    if any(not is_unknown(row["perplexity_without"]) for row in own):
        notes.append("With and without outlier features, and without as many random ones: of the sequences ablated.")
    if table is None:
        notes += _quantised_notes(comparison)
    texts = sorted({f"{row['model']}: {row['text']}" for row in own if row["text"]})
    if texts:
        notes.append(
            "Perplexities are of each store's own text and tokens, and compare only where these are the same: "
            + "; ".join(texts[:8])
            + ("; ..." if len(texts) > 8 else "")
            + "."
        )
    for name, words in (
        ("nonfinite_count", "{:,} values are NaN or infinite; a NaN never hits"),
        ("mantissa_bits", ROUNDED_NOTE),
    ):
        notes += sorted({f"{row['model']}: {words.format(row[name])}." for row in own if row[name]})
    if any(row["saturated"] for row in own):
        notes.append("Saturated: over half of the width qualifies; the criterion tells features apart no longer.")
    if table in (None, "table4") and comparison.table4:
        kinds = {row["median_magnitude_of"] for row in comparison.table4}
        medians = {
            "hits": "over the hits of the largest outlier feature",
            "position peaks": "for stores over position peaks of the largest outlier feature, as a rule larger than "
            "its hits; --quartiles reads the activations for the paper's quantity",
            "most common": "for published rows over the hits of the most common outlier feature, as Table 4 prints it",
        }
        parts = [text for kind, text in medians.items() if kind in kinds]
        if parts:
            notes.append("Median magnitude: " + "; ".join(parts) + ".")
    for one in comparison.published:
        if table is None or ((one.kind == "dettmers") == (table == "table4") and one.kind in (table, "dettmers")):
            notes.append(f"Published: {one.source}. {' '.join(one.notes)}")
            if counted_otherwise(comparison, one):
                notes.append(f"These published rows do not compare with the stores: they count {one.criteria}.")
    return notes


def _quantised_notes(comparison: Comparison) -> list[str]:
    return [note for one in comparison.quantised if (note := one.note) is not None]


RESAMPLES: Final = 1000
FACTS: Final = (
    *("model", "store", "published", "text", "sequences", "positions"),
    *("total_parameters", "active_parameters", "experts", "shared_experts", "top_k", "routing", "precision"),
    *("perplexity", "perplexity_low", "perplexity_high"),
    *("nonfinite_count", "mantissa_bits"),
)
COUNTED: Final = (
    *(f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high")),
    *("median_layer_fraction", "median_position_fraction"),
    *("distinct_features", "hidden_size", "share", "saturated"),
)
TABLE4: Final = (
    *("one_sided", "first_quartile", "median", "third_quartile"),
    *("largest_feature", "median_magnitude", "median_magnitude_of"),
)
ABLATED: Final = (
    *("top1_with", "top1_without", "top1_random"),
    *("perplexity_with", "perplexity_without", "perplexity_random"),
)


@dataclass(frozen=True)
class Comparison(Shown):
    """Rows of the study's two tables and of Dettmers' Table 4, of stores and of publications.

    Parameters
    ----------
    criteria : of the study's tables
    dettmers_criteria : of Table 4: the same thresholds and view, pooled, by layers and without rounding
    resamples, seed : of the bootstrap over sequences
    study, table4 : one row a store, then one a published model; the same keys in every row of a table, None where a
        number is not known and NaN where there is none
    published : the published tables among the rows; empty where they were not asked for
    quantised : perplexities under quantisers, of the stores beside which they are kept for the view

    Notes
    -----
    Keys of both: `model`, `store` (path; None for a published row), `published` (name of the published table; None for
    a store), `text`, `sequences`, `positions`, `total_parameters`, `active_parameters`, `experts`, `shared_experts`,
    `top_k`, `routing`, `precision`, `perplexity`, `nonfinite_count` and `mantissa_bits` (as in `Outliers`), `count`,
    `distinct_features`, `hidden_size`, `share` (of the width), `saturated`, `mean_layer_fraction`,
    `mean_position_fraction`, their medians over the outliers (`median_layer_fraction` ...), and the ends of 95%
    bootstrap intervals (`count_low`, `count_high` ...), of means over the resamples that have an outlier; `doubtful`:
    columns that a publication marks. Where `outliers ablate` ran with the criterion also `top1_with`, `top1_without`,
    `top1_random`, and the perplexities of the sequences that it ran, `perplexity_with`, `perplexity_without` and
    `perplexity_random`.

    `table4` also has `one_sided`, `largest_feature`, the quartiles `first_quartile`, `median`, `third_quartile` and
    `median_magnitude`, the quantity of Figure 4a; `median_magnitude_of` says of what: `hits` of the largest outlier
    feature (as the paper, needs the activations), `position peaks` of it over positions with a hit (from stored peaks
    alone; as a rule larger), or the `most common` outlier feature (Table 4 as printed).
    """

    criteria: Criteria
    dettmers_criteria: Criteria
    resamples: int
    seed: int
    study: tuple[Row, ...] = field(repr=False)
    table4: tuple[Row, ...] = field(repr=False)
    published: tuple[PublishedTable, ...] = field(repr=False)
    quantised: tuple[Quantised, ...] = field(default=(), repr=False)

    @property
    def moe(self) -> list[Row]:
        """Rows of mixture-of-experts models."""
        return [row for row in self.study if is_moe(row)]

    @property
    def dense(self) -> list[Row]:
        """Rows of all other models."""
        return [row for row in self.study if not is_moe(row)]

    def rows(self) -> list[Row]:
        """Rows of both of the study's tables."""
        return [*self.moe, *self.dense]

    def summary(self) -> list[tuple[str, str]]:
        """What a reader must know beside the tables."""
        return [("note", note) for note in _notes(self)]

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The study's two tables, Table 4 and perplexities under quantisers, as they are printed."""
        found = [
            (f"{title}: {_criterion(self, table)}", displayed(rows_of(self, table), table))
            for table, title in TITLES.items()
        ]
        return [*found, *([(QUANTISED_TITLE, quantised_rows(self))] if self.quantised else [])]

    def __str__(self) -> str:
        return as_text(self)

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers compare --json` prints: strict JSON."""
        return {
            "criteria": self.criteria.to_dict(),
            "dettmers_criteria": self.dettmers_criteria.to_dict(),
            "resamples": self.resamples,
            "seed": self.seed,
            "moe": jsonable(self.moe),
            "dense": jsonable(self.dense),
            "table4": jsonable(self.table4),
            "published": [
                {name: value for name, value in table.to_dict().items() if name != "rows"} for table in self.published
            ],
            "quantised": [one.to_dict() for one in self.quantised],
        }


def counted_otherwise(comparison: Comparison, table: PublishedTable) -> bool:
    """Whether the stores beside a published table were counted by another criterion than its numbers."""
    return table.criteria != (comparison.dettmers_criteria if table.kind == "dettmers" else comparison.criteria)


def is_moe(row: Row) -> bool:
    """Whether a row is of a mixture of experts."""
    return row["experts"] is not None and row["experts"] > 0


def columns(*, table4: bool) -> tuple[str, ...]:
    """Keys of a row, in order."""
    return (*FACTS, *COUNTED, *(TABLE4 if table4 else ()), *ABLATED, "doubtful")
