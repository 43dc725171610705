"""What a configuration tells of a model's text, and the numbers in it that no model can have."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from capture.errors import OutliersError, in_one_line

POSITIONS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "n_ctx",
    "context_length",
    "max_context_length",
    "model_max_length",
    "max_target_positions",
)
"""Names under which configurations give the number of positions, those of transformers and of code beside it."""

MOST_MODULES: Final = 10_000
"""Layers, and experts of a layer, that a configuration may ask for: some twenty times those of any published model."""

_COUNT: Final = re.compile(r"(^|_)(layers?|blocks?|experts)$")
_EPSILON: Final = re.compile(r"(^|_)eps(ilon)?$")


def check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose network would take for ever to build, or computes nothing but NaN.

    Parameters
    ----------
    config : as its file has it

    Raises
    ------
    OutliersError
        More layers or experts than `MOST_MODULES`, or an epsilon of a norm that is negative or not finite.
    """
    for name, value in _numbers(config):
        if _COUNT.search(name) and value > MOST_MODULES:
            raise OutliersError(
                f"{name} is {value} in the model's configuration; expected at most {MOST_MODULES}; "
                "correct its config.json, or download it again"
            )
        if _EPSILON.search(name) and not (math.isfinite(value) and value >= 0):
            raise OutliersError(
                f"{name} is {value} in the model's configuration; expected a small number from 0 on, "
                "such as 1e-05; correct its config.json, or download it again"
            )


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Numbers of a configuration, those of its parts (text, vision) included, by their names."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model.

    Raises
    ------
    OutliersError
        It describes several, or none.
    """
    try:
        found = config.get_text_config()
        if not isinstance(getattr(found, "model_type", None), str):
            raise ValueError(f"text_config is {found!r}")
        return found
    except ValueError as error:
        raise OutliersError(
            f"the configuration of {config.model_type!r} describes no single model of text ({in_one_line(error)}); "
            "expected one decoder; choose another model"
        ) from error


def positions(config: Any) -> tuple[str, int] | None:
    """Name and value of a configuration's number of positions; None where it gives none under a known name."""
    text = text_config(config)
    for name in POSITIONS:
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return name, value
    return None


def check_length(config: Any, length: int) -> None:
    """Refuse sequences that are longer than a model's positions.

    Raises
    ------
    OutliersError
        The configuration gives fewer than `length`.
    """
    found = positions(config)
    if found is not None and length > found[1]:
        raise OutliersError(
            f"--length {length} is longer than the {found[1]} positions that the model knows ({found[0]} of its "
            f"configuration); use --length {found[1]} or less"
        )
