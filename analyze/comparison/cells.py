"""How the cells of a comparison's tables read: columns, and what each shows of a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from analyze.display.text import parameters

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]
MISSING: Final = "-"
_LONG: Final = 1e5


def _name(row: Row) -> str:
    return str(row["model"])


def _origin(row: Row) -> str:
    return "store" if row["published"] is None else "published"


def _marked(row: Row, name: str, text: str) -> str:
    return f"{text}*" if name in row["doubtful"] else text


def _experts(row: Row) -> str:
    if row["experts"] is None:
        return MISSING
    shared = f"+{row['shared_experts']} shared" if row["shared_experts"] else ""
    return _marked(row, "experts", f"{row['experts']}{shared}")


def _whole(name: str) -> Callable[[Row], str]:
    return lambda row: MISSING if row[name] is None else _marked(row, name, f"{row[name]:,}")


def _words(name: str) -> Callable[[Row], str]:
    return lambda row: row[name] if row[name] else MISSING


def _number(name: str, digits: str = ".2f") -> Callable[[Row], str]:
    def form(row: Row) -> str:
        if is_unknown(row[name]):
            return MISSING
        kind = digits if row[name] < _LONG else ".3g"
        return f"{row[name]:{kind}}" + _range(row, name, f"{{:{kind}}}")

    return form


def _percent(name: str) -> Callable[[Row], str]:
    def form(row: Row) -> str:
        if is_unknown(row[name]):
            return MISSING
        middle = row.get(name.replace("mean_", "median_"))
        median = "" if name.startswith("median_") or is_unknown(middle) or middle == row[name] else f" ({middle:.1%})"
        return f"{row[name]:.1%}{median}{_range(row, name, '{:.1%}')}"

    return form


def _range(row: Row, name: str, form: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if is_unknown(low) or is_unknown(high) else f" [{form.format(low)}, {form.format(high)}]"


def _count(row: Row) -> str:
    return f"{row['count']:,}" + _range(row, "count", "{:,.0f}")


def _width(row: Row) -> str:
    if row["share"] is None:
        return MISSING
    return f"{row['share']:.1%}" + (", saturated" if row["saturated"] else "")


def _quartiles(row: Row) -> str:
    values = [row[name] for name in ("first_quartile", "median", "third_quartile")]
    return MISSING if any(is_unknown(value) for value in values) else " / ".join(f"{value:.3g}" for value in values)


def _top1(row: Row) -> str:
    if is_unknown(row["top1_with"]):
        return MISSING
    text = f"{row['top1_with']:.1%} / {row['top1_without']:.1%}"
    return text if is_unknown(row["top1_random"]) else f"{text} / {row['top1_random']:.1%}"


def _ablated_perplexity(row: Row) -> str:
    if is_unknown(row["perplexity_without"]):
        return MISSING
    return " / ".join(f"{row[f'perplexity_{variant}']:.5g}" for variant in ("with", "without", "random"))


def is_unknown(value: Any) -> bool:
    """Whether a row has no number here: None, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


_ABLATED: Final[tuple[Column, ...]] = (
    ("Top-1 with / without / random", _top1),
    ("Perplexity with / without / random", _ablated_perplexity),
)
STUDY_COLUMNS: Final[tuple[Column, ...]] = (
    ("Model", _name),
    ("From", _origin),
    ("Total", lambda row: parameters(row["total_parameters"])),
    ("Active", lambda row: parameters(row["active_parameters"])),
    ("Experts", _experts),
    ("Top-k", _whole("top_k")),
    ("Routing", _words("routing")),
    ("Precision", _words("precision")),
    ("Perplexity", _number("perplexity")),
    ("Outliers", _count),
    ("Mean L%", _percent("mean_layer_fraction")),
    ("Mean S%", _percent("mean_position_fraction")),
    ("Distinct", _whole("distinct_features")),
    ("Of width", _width),
    *_ABLATED,
)
TABLE4_COLUMNS: Final[tuple[Column, ...]] = (
    ("Model", _name),
    ("From", _origin),
    ("Total", lambda row: parameters(row["total_parameters"])),
    ("Perplexity", _number("perplexity")),
    ("Outliers", _count),
    ("One-sided", _whole("one_sided")),
    ("Layers", _percent("mean_layer_fraction")),
    ("Positions", _percent("mean_position_fraction")),
    ("Quartiles", _quartiles),
    ("Median magnitude", _number("median_magnitude", ".3g")),
    *_ABLATED,
)
OPTIONAL_COLUMNS: Final = (*(name for name, _ in _ABLATED), "Quartiles", "Distinct", "Of width")
LEFT_COLUMNS: Final = ("Model", "From", "Routing", "Precision", "Scheme", "Transform")
