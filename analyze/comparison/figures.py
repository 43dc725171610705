"""The figures of the study and of Dettmers et al. (2022), drawn from rows of a comparison. Nothing is computed here.

Stores are solid, published points hollow. Colours are two of Okabe and Ito's, with a marker each, for any eyes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from analyze.comparison.cells import Row
from analyze.comparison.result import Comparison, counted_otherwise
from analyze.display.figures import in_own_style, save, words
from analyze.display.text import parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

_LONGEST_NAME: Final = 28
_INK: Final = "0.35"


@dataclass(frozen=True)
class Series:
    """One quantity: key of the rows, key of its median if it has one, name, colour and marker."""

    key: str
    median: str | None
    name: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Plan:
    """One figure.

    Parameters
    ----------
    name : of the file
    title : above the figure
    table : `moe`, `dense`, `study` or `table4`
    x : key of the rows
    series : what is drawn
    lines : which published points are joined: those of a `family` (the same model name), `all`, or none
    """

    name: str
    title: str
    table: str
    x: Literal["total_parameters", "active_parameters", "perplexity"]
    series: tuple[Series, ...]
    y_label: str
    lines: Literal["family", "all", "none"] = "none"

    @property
    def percent(self) -> bool:
        """Whether the vertical axis is a share."""
        return self.series[0].key.endswith("fraction")


_LAYERS: Final = Series("mean_layer_fraction", "median_layer_fraction", "L%, layers", "#0072B2", "o")
_POSITIONS: Final = Series("mean_position_fraction", "median_position_fraction", "S%, positions", "#D55E00", "s")
_MAGNITUDE: Final = Series("median_magnitude", None, "median magnitude", "#0072B2", "o")
_COUNT: Final = Series("count", None, "outlier features", "#0072B2", "o")
_SHARES: Final = (_LAYERS, _POSITIONS)
_AFFECTED: Final = "mean share that outliers affect"

PLANS: Final = (
    Plan(
        "study-1-moe-total",
        "The study, figure 1: mixtures of experts by total parameters",
        "moe",
        "total_parameters",
        _SHARES,
        _AFFECTED,
    ),
    Plan(
        "study-2-moe-active",
        "The study, figure 2: mixtures of experts by active parameters",
        "moe",
        "active_parameters",
        _SHARES,
        _AFFECTED,
    ),
    Plan(
        "study-3-dense-total",
        "The study, figure 3: dense models by parameters",
        "dense",
        "total_parameters",
        _SHARES,
        _AFFECTED,
        "all",
    ),
    Plan("study-4-perplexity", "The study, figure 4: by perplexity", "study", "perplexity", _SHARES, _AFFECTED, "all"),
    Plan(
        "dettmers-3a-parameters",
        "Dettmers et al. (2022), figure 3a: by parameters",
        "table4",
        "total_parameters",
        _SHARES,
        _AFFECTED,
        "family",
    ),
    Plan(
        "dettmers-3b-perplexity",
        "Dettmers et al. (2022), figure 3b: by perplexity",
        "table4",
        "perplexity",
        _SHARES,
        _AFFECTED,
        "all",
    ),
    Plan(
        "dettmers-4a-magnitude",
        "Dettmers et al. (2022), figure 4a: size of the largest outlier",
        "table4",
        "perplexity",
        (_MAGNITUDE,),
        "median magnitude",
        "all",
    ),
    Plan(
        "dettmers-4b-outliers",
        "Dettmers et al. (2022), figure 4b: number of outliers",
        "table4",
        "perplexity",
        (_COUNT,),
        "outlier features",
        "all",
    ),
)


def figure_of(comparison: Comparison, plan: Plan) -> Figure:
    """Draw one figure of a comparison.

    Parameters
    ----------
    comparison : from `compare`
    plan : one of `PLANS`
    """
    rows = list(getattr(comparison, plan.table))
    dettmers = plan.table == "table4"
    criterion = str(comparison.dettmers_criteria if dettmers else comparison.criteria)
    beside = [table for table in comparison.published if (table.kind == "dettmers") == dettmers]
    for other in {str(table.criteria) for table in beside if counted_otherwise(comparison, table)}:
        criterion = f"stores: {criterion}; published, otherwise: {other}"
    return draw(rows, plan, criterion)


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every figure of `PLANS` as PNG and SVG.

    Raises
    ------
    OutliersError
        A file cannot be written.
    """
    written = []
    for plan in PLANS:
        figure = figure_of(comparison, plan)
        for suffix in (".png", ".svg"):
            file = folder / f"{plan.name}{suffix}"
            save(figure, file)
            written.append(file)
    return written


@in_own_style
def draw(rows: Sequence[Row], plan: Plan, criterion: str = "") -> Figure:
    """Draw rows of a comparison's table.

    Parameters
    ----------
    rows : with the keys of `Comparison`
    plan : what of them
    criterion : in words, for the foot of the figure
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    known = [row for row in rows if _finite(row[plan.x]) and row[plan.x] > 0]
    drawn = [row for row in known if any(_finite(row[series.key]) for series in plan.series)]
    nothing = [row for row in known if row["count"] == 0]
    _set_axes(axes, known, plan)
    for series, side in zip(plan.series, (-1, 1) if len(plan.series) > 1 else (0,), strict=True):
        _draw_lines(axes, drawn, plan, series)
        _draw_points(axes, drawn, plan, series, side)
    if nothing:
        places = [row[plan.x] for row in nothing]
        axes.plot(places, [0] * len(places), "x", color="black", markersize=7, clip_on=False, zorder=5)
    if known:
        _name_points(axes, known, plan)
    else:
        axes.text(0.5, 0.5, "no such model", ha="center", va="center", color=_INK, transform=axes.transAxes)
    figure.suptitle(plan.title, fontsize=11, x=0.02, ha="left", weight="bold")
    _legend(figure, drawn, nothing, plan, _foot(rows, known, plan, criterion))
    return figure


def _foot(rows: Sequence[Row], known: Sequence[Row], plan: Plan, criterion: str) -> str:
    """What a reader must know, in small print."""
    notes = [criterion]
    if len(plan.series) > 1 and any(row["published"] is None for row in known):
        notes.append("a store's L% stands left of its place, its S% right")
    if plan.series == (_MAGNITUDE,):
        kinds = {row["median_magnitude_of"] for row in known}
        notes += [text for kind, text in MEDIANS.items() if kind in kinds]
    if len(rows) > len(known):
        notes.append(f"not shown: {len(rows) - len(known)} without {_X_LABELS[plan.x].lower()}")
    text = words("; ".join(note for note in notes if note), 1000)
    return "\n".join(textwrap.wrap(text, 118))


MEDIANS: Final = {
    "hits": "stores: over the hits of the largest outlier feature",
    "position peaks": "stores: over position peaks of the largest outlier feature, as a rule larger than its hits",
    "most common": "published: over the hits of the most common outlier feature (Table 4)",
}
_X_LABELS: Final = {
    "total_parameters": "Total parameters",
    "active_parameters": "Active parameters",
    "perplexity": "Perplexity",
}


def _set_axes(axes: Axes, rows: Sequence[Row], plan: Plan) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel(plan.y_label)
    values = [row[plan.x] for row in rows] or [1.0]
    low, high = min(values), max(values)
    if plan.x == "perplexity":
        axes.set_xlabel("Perplexity (lower to the right)")
        margin = 0.06 * (high - low) or 0.1 * high
        axes.set_xlim(high + margin, low - margin)
    else:
        axes.set_xscale("log")
        axes.set_xlabel(_X_LABELS[plan.x])
        margin = max((high / low) ** 0.06, 1.3)
        axes.set_xlim(low / margin, high * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: parameters(round(value))))
    if plan.percent:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        return
    heights = [
        row[f"{series.key}_high"] if _finite(row.get(f"{series.key}_high")) else row[series.key]
        for row in rows
        for series in plan.series
        if _finite(row[series.key])
    ]
    axes.set_ylim(0, 1.12 * max([*heights, 1]))
    if plan.series[0].key == "count":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_lines(axes: Axes, rows: Sequence[Row], plan: Plan, series: Series) -> None:
    """Thin lines through published points, as the originals have them."""
    if plan.lines == "none":
        return
    published = [row for row in rows if row["published"] is not None and _finite(row[series.key])]
    families = sorted({(row["published"], row["model"] if plan.lines == "family" else "") for row in published})
    for table, family in families:
        points = sorted(
            (row[plan.x], row[series.key])
            for row in published
            if row["published"] == table and family in ("", row["model"])
        )
        axes.plot(*zip(*points, strict=True), color=series.colour, linewidth=0.9, alpha=0.45, zorder=1)


def _draw_points(axes: Axes, rows: Sequence[Row], plan: Plan, series: Series, side: int) -> None:
    """Means with their intervals and, beside them, medians; `side` keeps a store's two quantities apart."""
    for row in rows:
        x, y = row[plan.x], row[series.key]
        if not _finite(y):
            continue
        own = row["published"] is None
        place = _beside(axes, side * _APART) if own else axes.transData
        low, high = row.get(f"{series.key}_low"), row.get(f"{series.key}_high")
        if own and low is not None and high is not None and _finite(low + high):
            options: Any = {"color": series.colour, "markeredgewidth": 1.2, "linewidth": 1.2, "markersize": 6}
            axes.plot([x, x], [low, high], marker="_", transform=place, zorder=2, clip_on=False, **options)
        fill = series.colour if own else "white"
        options = {"color": series.colour, "markerfacecolor": fill, "markeredgewidth": 1.3, "markersize": 6.5}
        axes.plot(x, y, series.marker, transform=place, zorder=4, clip_on=False, **options)
        median = row.get(series.median) if series.median else None
        if own and median is not None and _finite(median):
            beside = _beside(axes, side * 3 * _APART)
            options = {"color": series.colour, "markersize": 5, "markeredgewidth": 0, "alpha": 0.6}
            axes.plot(x, median, _MEDIAN, transform=beside, zorder=3, clip_on=False, **options)


_MEDIAN: Final = "D"
_APART: Final = 4.0  # points


def _beside(axes: Axes, points: float) -> Transform:
    """Places of data, moved to the right by some points."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _name_points(axes: Axes, rows: Sequence[Row], plan: Plan) -> None:
    """Names above the axes, kept apart, each with a line to its place."""
    inverse = axes.transAxes.inverted()
    names: dict[tuple[float, str, bool], None] = {}
    for row in rows:
        text = words(str(row["model"]).rsplit("/", 1)[-1], _LONGEST_NAME)
        if plan.table == "table4" and row["published"] is not None:
            text = f"{text} {parameters(row['total_parameters'])}"
        place = float(inverse.transform(axes.transData.transform((row[plan.x], 0)))[0])
        names[place, text, row["published"] is None] = None
    ordered = sorted(names)
    for (place, text, own), moved in zip(ordered, spread([place for place, _, _ in ordered], _GAP), strict=True):
        axes.plot([place, moved], [1.005, 1.045], color="0.75", linewidth=0.6, transform=axes.transAxes, clip_on=False)
        axes.text(
            moved,
            1.06,
            text,
            rotation=45,
            rotation_mode="anchor",
            ha="left",
            va="center",
            fontsize=7,
            color="black" if own else _INK,
            weight="bold" if own else "normal",
            transform=axes.transAxes,
        )


_GAP: Final = 0.033  # of the width of the axes: the height of a line of text


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved apart as little as it takes to keep a gap.

    Blocks of places that would touch are set side by side around their common centre.
    """
    blocks: list[list[float]] = []  # sum of the wished places of the first member, and number of members
    for place in places:
        blocks.append([place, 1])
        while len(blocks) > 1:
            (before, many), (wish, few) = blocks[-2], blocks[-1]
            if before / many + many * gap <= wish / few:
                break
            blocks[-2:] = [[before + wish - few * many * gap, many + few]]
    return [total / count + gap * i for total, count in blocks for i in range(int(count))]


def _legend(figure: Figure, drawn: Sequence[Row], nothing: Sequence[Row], plan: Plan, foot: str) -> None:
    from matplotlib.lines import Line2D

    def sign(marker: str, name: str, colour: str = _INK, **options: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=marker, color=colour, label=name, markersize=6, **options)

    own = [row for row in drawn if row["published"] is None]
    signs = [sign(series.marker, series.name, series.colour) for series in plan.series] if plan.percent else []
    if own:
        signs.append(sign("o", "mean of a store" if plan.percent else "store"))
    if len(own) < len(drawn):
        signs.append(sign("o", "published", markerfacecolor="white", markeredgewidth=1.3))
    if any(series.median and _finite(row[series.median]) for row in own for series in plan.series):
        signs.append(sign(_MEDIAN, "median of a store", markeredgewidth=0, alpha=0.6))
    if any(_finite(row.get(f"{series.key}_low")) for row in own for series in plan.series):
        signs.append(sign("|", "95% interval", markeredgewidth=1.2))
    if nothing:
        signs.append(sign("x", "no outlier", "black"))
    style: dict[str, Any] = {"ncols": 4, "fontsize": 8, "frameon": False, "title_fontproperties": {"size": 6.5}}
    legend = figure.legend(handles=signs, loc="outside lower center", title=foot, **style)
    legend.get_title().set(color=_INK, ha="center", multialignment="center")


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)
