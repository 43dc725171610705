"""Words of the command line as numbers."""

from __future__ import annotations

import math

from capture.schema import OutliersError

_MOST = 1_000_000


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
        steps = math.floor((stop - start) / step * (1 + 1e-12) + 1e-9)
        if len(values) + steps >= _MOST:
            raise OutliersError(f"{name} is {text!r}, {steps + 1:,} numbers; expected at most {_MOST:,}")
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


def layer_range(text: str) -> tuple[int, int]:
    """First layer and the layer after the last, of `4:12`."""
    pieces = text.split(":")
    if len(pieces) != 2 or not all(piece.strip().isdecimal() for piece in pieces):
        raise OutliersError(f"layer-range is {text!r}; expected FIRST:STOP, such as 4:12 for layers 4 to 11")
    return int(pieces[0]), int(pieces[1])


def sequences(text: str) -> tuple[int, ...]:
    """Indices of sequences."""
    return indices(text, "sequences")


def indices(text: str, name: str) -> tuple[int, ...]:
    """Indices of `0,2,5:8`; a range leaves its end out, as in Python."""
    values: list[int] = []
    for part in text.split(","):
        pieces = part.split(":")
        if len(pieces) > 2 or not all(piece.strip().isdecimal() for piece in pieces):
            raise OutliersError(f"{name} is {text!r}; expected indices such as 0,2,5:8")
        ends = [int(piece) for piece in pieces]
        if len(ends) == 2 and ends[0] >= ends[1]:
            raise OutliersError(f"{name} is {text!r}; expected FIRST:STOP with FIRST < STOP, such as 5:8")
        if len(ends) == 2 and ends[1] - ends[0] > _MOST:
            raise OutliersError(f"{name} is {text!r}; expected at most {_MOST:,} of them")
        values += range(ends[0], ends[-1]) if len(ends) == 2 else ends
    return tuple(values)
