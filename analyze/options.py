"""Words of the command line that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analyze import arguments

if TYPE_CHECKING:
    from analyze.criteria import Criteria


def _words(*words: str) -> Callable[[str], list[str]]:
    """What a press of TAB offers for an option; what it accepts is checked where it is used."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


StorePath = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="A store: folder, .zarr.zip file, or https, s3 or hf URL.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Preset = Annotated[
    str | None,
    typer.Option(
        autocompletion=_words("study", "dettmers"),
        help="study or dettmers: all conventions at once.",
        show_default=False,
    ),
]
Magnitude = Annotated[float | None, typer.Option(help="A value hits where |x| >= this.", show_default="6")]
Layers = Annotated[float | None, typer.Option(help="Least share of layer units with a hit.", show_default="0.25")]
Positions = Annotated[float | None, typer.Option(help="Least share of positions with a hit.", show_default="0.06")]
Signal = Annotated[
    str | None,
    typer.Option(autocompletion=_words("input", "output"), help="input or output of the norms.", show_default="input"),
]
Counting = Annotated[
    str | None,
    typer.Option(
        autocompletion=_words("per-sequence", "pooled"), help="per-sequence or pooled.", show_default="per-sequence"
    ),
]
LayerUnit = Annotated[
    str | None, typer.Option(autocompletion=_words("site", "layer"), help="site or layer.", show_default="site")
]
LayerRange = Annotated[str | None, typer.Option(help="FIRST:STOP; STOP is left out.", show_default="all")]
Sites = Annotated[str | None, typer.Option(help="Names, separated by commas.", show_default="all")]
Sequences = Annotated[str | None, typer.Option(help="Indices such as 0,2,5:8.", show_default="all")]
SkipFirst = Annotated[int | None, typer.Option(help="Positions at the start that do not count.", show_default="0")]
Scale = Annotated[
    str | None,
    typer.Option(
        autocompletion=_words("absolute", "rms", "median"), help="absolute, rms or median.", show_default="absolute"
    ),
]
Rounding = Annotated[
    str | None,
    typer.Option(
        autocompletion=_words("none", "bfloat16"),
        help="none or bfloat16: of values, before all else.",
        show_default="none",
    ),
]
Many = Annotated[str | None, typer.Option(help="START:STOP:STEP, a list, or a number.", show_default="6")]
ManyLayers = Annotated[str | None, typer.Option(help="As --magnitude, fractions.", show_default="0.25")]
ManyPositions = Annotated[str | None, typer.Option(help="As --magnitude, fractions.", show_default="0.06")]
Scheduler = Annotated[str | None, typer.Option(help="tcp://HOST:PORT of a dask scheduler.", show_default="threads")]
Workers = Annotated[int | None, typer.Option(help="Worker processes to start here.", show_default="threads")]
Csv = Annotated[Path | None, typer.Option(help="Write the rows to this file.", show_default=False)]


def criteria_of(preset: str | None, **settings: Any) -> Criteria:
    """Criteria of a preset with every setting that was given on top."""
    from analyze.criteria import Criteria

    given = {name: value for name, value in settings.items() if value is not None}
    for name, parse in (("layer_range", arguments.layer_range), ("sequences", arguments.sequences)):
        if name in given:
            given[name] = parse(given[name])
    if "sites" in given:
        given["sites"] = tuple(part.strip() for part in given["sites"].split(","))
    return Criteria.preset(preset, **given)
