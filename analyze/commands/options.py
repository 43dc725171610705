"""Words of the command line that several subcommands share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

from capture.errors import OutliersError

if TYPE_CHECKING:
    from analyze.question.criteria import Criteria


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
SkipTokens = Annotated[
    str | None,
    typer.Option(
        autocompletion=_words("bos", "eos", "special"),
        help="Tokens that do not count: bos, eos, special, numbers.",
        show_default="none",
    ),
]
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
KeepPaths = Annotated[
    bool, typer.Option("--keep-paths", help="Hand on paths of this machine whole, not their last part alone.")
]
Csv = Annotated[Path | None, typer.Option(help="Write the rows to this file.", show_default=False)]


def criteria_of(preset: str | None = None, **settings: Any) -> Criteria:
    """Criteria of a preset with every setting that was given on top."""
    from analyze.question.criteria import Criteria

    given = {name: value for name, value in settings.items() if value is not None}
    for name, parse in (("layer_range", layer_range), ("sequences", sequences), ("skip_tokens", tokens)):
        if name in given:
            given[name] = parse(given[name])
    if "sites" in given:
        given["sites"] = tuple(part.strip() for part in given["sites"].split(","))
    return Criteria.preset(preset, **given)


# In the order that `--help` lists them.
_CRITERIA: Final[dict[str, Any]] = {
    "preset": Preset,
    "magnitude": Magnitude,
    "layers": Layers,
    "positions": Positions,
    "signal": Signal,
    "counting": Counting,
    "layer_unit": LayerUnit,
    "layer_range": LayerRange,
    "sites": Sites,
    "sequences": Sequences,
    "skip_first": SkipFirst,
    "skip_tokens": SkipTokens,
    "scale": Scale,
    "rounding": Rounding,
}

OF_CRITERIA_ALONE: Final = (
    *("preset", "magnitude", "layers", "positions", "signal"),
    *("counting", "layer_unit", "scale", "rounding"),
)
"""Options that a command has not which asks for layers, sites, sequences and positions alone."""


def asks_for_criteria(
    *, preset: str | None = None, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of criteria in the place of its parameter `criteria`.

    Where the command has a parameter of an option's name, as for a range of magnitudes, that one stands in its place
    and is the command's own affair.

    Parameters
    ----------
    preset : the preset that holds where none is given
    without : options that the command has not
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        # `Criteria` is a name for type checkers alone: importing it costs what help and completion need not wait for.
        hints = get_type_hints(command, localns={"Criteria": object}, include_extras=True)
        own = {
            name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in inspect.signature(command).parameters.items()
        }
        shared = {
            name: inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=preset if name == "preset" else None, annotation=kind
            )
            for name, kind in _CRITERIA.items()
            if name not in (*without, *own)
        }
        options = [own.get(name) or shared[name] for name in _CRITERIA if name in own or name in shared]
        parameters: list[inspect.Parameter] = []
        for name, parameter in own.items():
            if name not in _CRITERIA:
                parameters += options if name == "criteria" else [parameter]

        @functools.wraps(command)
        def run(**words: Any) -> None:
            chosen = {name: words.pop(name) for name in shared}
            command(criteria=criteria_of(**chosen), **words)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # typer would look through to the command
        return run

    return decorated


_MOST = 1_000_000
_MOST_DIGITS = 18  # of an index; Python refuses to read thousands of them


def numbers(text: str, name: str) -> list[float]:
    """Numbers of `1:40:0.5` (start, stop, step; the stop included), `1,2,6.7`, or a single number.

    Each is start + i * step rounded to 12 decimals, so that 0.1:1:0.1 holds 0.3 and not a sum of tenths.
    """
    values: list[float] = []
    for part in text.split(","):
        pieces = [_number(piece, name, text) for piece in part.split(":")]
        if len(pieces) == 1:
            values += pieces
            continue
        if len(pieces) != 3 or not pieces[2] > 0 or pieces[1] < pieces[0]:
            raise OutliersError(f"{name} is {text!r}; expected START:STOP:STEP with START <= STOP and STEP > 0")
        start, stop, step = pieces
        many = (stop - start) / step * (1 + 1e-12) + 1e-9
        if not len(values) + many < _MOST:  # it may be infinite
            raise OutliersError(f"{name} is {text!r}, {many + 1:,.6g} numbers; expected at most {_MOST:,}")
        steps = math.floor(many)
        values += [round(start + i * step, 12) for i in range(steps + 1)]
    return values


def _number(text: str, name: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OutliersError(f"{name} is {whole!r}; expected a number, a list such as 1,2,3, or START:STOP:STEP")
    return value


def _is_index(text: str) -> bool:
    return text.strip().isdecimal() and len(text.strip()) <= _MOST_DIGITS


def layer_range(text: str) -> tuple[int, int]:
    """First layer and the layer after the last, of `4:12`."""
    pieces = text.split(":")
    if len(pieces) != 2 or not all(map(_is_index, pieces)):
        raise OutliersError(f"layer-range is {text!r}; expected FIRST:STOP, such as 4:12 for layers 4 to 11")
    return int(pieces[0]), int(pieces[1])


def sequences(text: str) -> tuple[int, ...]:
    """Indices of sequences."""
    return indices(text, "sequences")


def tokens(text: str) -> tuple[int | str, ...]:
    """Numbers and words of `bos,198`."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(int(part) if _is_index(part) else part for part in parts)


def indices(text: str, name: str) -> tuple[int, ...]:
    """Indices of `0,2,5:8`; a range leaves its end out, as in Python."""
    values: list[int] = []
    for part in text.split(","):
        pieces = part.split(":")
        if len(pieces) > 2 or not all(map(_is_index, pieces)):
            raise OutliersError(f"{name} is {text!r}; expected indices such as 0,2,5:8")
        ends = [int(piece) for piece in pieces]
        if len(ends) == 2 and ends[0] >= ends[1]:
            raise OutliersError(f"{name} is {text!r}; expected FIRST:STOP with FIRST < STOP, such as 5:8")
        if len(ends) == 2 and ends[1] - ends[0] > _MOST:
            raise OutliersError(f"{name} is {text!r}; expected at most {_MOST:,} of them")
        values += range(ends[0], ends[-1]) if len(ends) == 2 else ends
    return tuple(values)
