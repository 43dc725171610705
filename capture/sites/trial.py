"""What is tried on a loaded model before a store exists: that it looks back alone, and takes these tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capture.errors import OutliersError
from capture.models.placement import input_device
from capture.sites.place import SiteMap

_LENGTH = 9


class _EnoughError(Exception):
    """Ends a pass that has shown what it was run for."""


def refuse_lookahead(model: Any) -> bool:
    """Refuse a model with weights in which a later token changes what is predicted before it.

    Returns
    -------
    False where it cannot be told, since no prediction is finite; what is not finite is not compared

    Raises
    ------
    OutliersError
        It does: the model is an encoder, or has a prefix that it reads in both directions.
    """
    weight = model.get_input_embeddings().weight
    tokens = (torch.arange(1, _LENGTH + 1, device=input_device(model)) % len(weight))[None].repeat(2, 1)
    tokens[1, -1] = (tokens[1, -1] + 1) % len(weight)
    with torch.inference_mode():
        first, second = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    known = torch.isfinite(first) & torch.isfinite(second)
    first, second = first[known], second[known]
    if first.numel() == 0:
        return False
    if not torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.abs().max())):
        raise OutliersError(
            f"{type(model).__name__} looks ahead: a later token changes earlier predictions; "
            "expected a decoder; choose another model"
        )
    return bool(known.all())


def refuse_untakeable(
    model: Any, placed: SiteMap, token_id: npt.NDArray[np.int32], longest: npt.NDArray[np.int32]
) -> None:
    """Refuse tokens and lengths that a model cannot take, whatever its configuration says.

    The longest sequence goes through the model as far as its second block: positions are looked up before the first
    or in it.

    Parameters
    ----------
    model : with weights
    placed : its sites
    token_id : (sequence, position) what it would read; -1 behind the end of a sequence
    longest : (1, position) the longest sequence

    Raises
    ------
    OutliersError
        A token has no row in the embedding, or the pass fails.
    """
    embedding = model.get_input_embeddings().weight
    if int(token_id.max()) >= len(embedding):
        raise OutliersError(
            f"the text has the token {token_id.max()}, and the embedding of {type(model).__name__} has "
            f"{len(embedding)} rows; expected the model's own tokenizer; mend the checkpoint, or choose another model"
        )
    tokens = torch.from_numpy(longest.astype(np.int64)).to(input_device(model))
    behind = next((site.module for site in placed.sites if site.layer == 1), placed.final.module)

    def stop(*_: Any) -> None:
        raise _EnoughError

    handle = model.get_submodule(behind).register_forward_pre_hook(stop)
    try:
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False)
    except _EnoughError:
        pass
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OutliersError(
            f"{type(model).__name__} cannot run on {tokens.shape[1]} tokens ({reason}); expected a length that it has "
            "positions and memory for; use a smaller --length"
        ) from error
    finally:
        handle.remove()
