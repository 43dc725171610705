"""Losses of the tokens that a model was given, from its logits: a few positions at a time, in float32."""

from __future__ import annotations

import itertools
from typing import Final

import torch

_A_THREAD: Final = 4
"""Positions whose logits are widened to float32 at once on a CPU, for each thread: few enough to stay in its cache."""

_A_GPU: Final = 256
"""The same on a GPU: so many that it computes longer than it takes to be told to."""


def nll_positions(positions: int, device: str) -> int:
    """Positions of a sequence that are worked on at once, of so many, on a `torch.device` of this type."""
    return min(_A_THREAD * torch.get_num_threads() if device == "cpu" else _A_GPU, positions)


def nll_bytes(positions: int, vocabulary: int, dtype: str, device: str) -> int:
    """Memory that the losses of a batch take beside its logits, which are of `dtype`."""
    copies = 1 if dtype == "float32" else 2
    return 4 * copies * nll_positions(positions, device) * vocabulary


def token_nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token given those before it.

    Parameters
    ----------
    logits : (sequence, position, vocabulary)
    ids : (sequence, position) int64

    Returns
    -------
    (sequence, position) float32 on the device of the logits, nats; NaN at position 0
    """
    ids = ids.to(logits.device, non_blocking=True)
    result = torch.full(ids.shape, torch.nan, device=logits.device)
    # The memory of one window serves the next: new pages would cost as much as what is computed in them.
    window = nll_positions(ids.shape[1], logits.device.type)
    normal = torch.empty(window, logits.shape[-1], device=logits.device)
    wide = None if logits.dtype == torch.float32 else torch.empty_like(normal)
    # One sequence after another: a window of several would not lie in one piece, and be copied twice more.
    for row, begin in itertools.product(range(len(ids)), range(0, ids.shape[1] - 1, window)):
        end = min(begin + window, ids.shape[1] - 1)
        scores, likelihood = logits[row, begin:end], normal[: end - begin]
        if wide is not None:
            scores = wide[: end - begin].copy_(scores)
        torch.log_softmax(scores, dim=-1, out=likelihood)
        chosen = ids[row, begin + 1 : end + 1, None]
        result[row, begin + 1 : end + 1] = likelihood.gather(-1, chosen)[..., 0].neg()
    return result
