"""Checks of what a user asks for; each refuses in one line."""

from __future__ import annotations

import math
import operator
from typing import Any, Final

import numpy as np

from capture.errors import OutliersError

_MOST_REPEATS: Final = 1_000_000


def check_magnitude(value: float, name: str = "magnitude") -> None:
    """Refuse a threshold of magnitudes that is not a finite number of 0 or more."""
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise OutliersError(f"{name} is {value!r}; expected a finite number, 0 or more")


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction outside 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise OutliersError(f"{name} is {value!r}; expected a fraction from 0 to 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def within(value: int, size: int, name: str) -> int:
    """An index as int, refused where a dimension has no such entry."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise OutliersError(f"{name} is {value!r}; expected a whole number, 0 to {size - 1}") from error
    if not 0 <= number < size:
        raise OutliersError(f"{name} is {number}; the store has {name}s 0 to {size - 1}")
    return number


def whole(name: str, value: Any) -> int:
    """A setting that must be a whole number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise OutliersError(f"{name} has {value!r}; expected a whole number") from error


def check_repeats(repeats: int, seed: int) -> None:
    """Refuse a number of random draws that is too small, or that nobody lives to see, and a seed below 0."""
    for name, value, low in (("repeats", repeats, 1), ("seed", seed, 0)):
        if whole(name, value) < low:
            raise OutliersError(f"{name} is {value}; expected {low} or more")
    if repeats > _MOST_REPEATS:
        raise OutliersError(f"repeats is {repeats}; expected {_MOST_REPEATS:,} or fewer")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of the choices."""
    if value not in choices:
        raise OutliersError(f"{name.replace('_', '-')} is {value!r}; expected one of {', '.join(choices)}")
