"""What the name of a checkpoint says: its step, the tokens seen so far, and what is left, which names the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STEP: Final = re.compile(r"(?<![a-z])(?:global[-_]?)?(?:step|checkpoint|ckpt|iter)[-_]?(\d{1,15})(?![\da-z.])", re.I)
_TOKENS: Final = re.compile(r"(?<![a-z])tokens?[-_]?(\d{1,6}(?:\.\d{1,6})?)([KMBT])(?![\da-z])", re.I)
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint's name, taken apart.

    Parameters
    ----------
    step : of the training
    tokens : seen so far, as rounded as the name has them; None where it does not say
    run : what else the name says, such as `stage1`; checkpoints of one run share it
    """

    step: int
    tokens: int | None
    run: str


def checkpoint_name(name: str) -> CheckpointName | None:
    """Take a name apart; None where it names no step, or several.

    Parameters
    ----------
    name : of a revision or folder, such as `step1000` (Pythia), `stage1-step5000-tokens11B` (OLMo 2),
        `global_step95000` (BLOOM), `checkpoint-500` (transformers' Trainer) or `iter_0001000` (Megatron-LM)
    """
    steps, tokens = list(_STEP.finditer(name)), list(_TOKENS.finditer(name))
    if len(steps) != 1 or len(tokens) > 1:
        return None
    rest = _TOKENS.sub("-", _STEP.sub("-", name))
    return CheckpointName(
        step=int(steps[0][1]),
        tokens=round(float(tokens[0][1]) * _UNITS[tokens[0][2].upper()]) if tokens else None,
        run="-".join(part for part in re.split(r"[-_]+", rest) if part),
    )
