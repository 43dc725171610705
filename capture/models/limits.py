"""How many positions a model has, as its configuration tells it."""

from __future__ import annotations

from typing import Any, Final

from capture.errors import OutliersError

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


def positions(config: Any) -> tuple[str, int] | None:
    """Name and value of a configuration's number of positions; None where it gives none under a known name."""
    text = config.get_text_config()
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
