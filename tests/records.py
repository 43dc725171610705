"""Records beside stores, as the commands that run a model leave them, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from analyze import View, open_store
from analyze.peaks.counted import lengths
from analyze.quantization.record import PLAIN, Predictions, record_file
from analyze.quantization.variants import outputs_view
from capture.store.identity import STORE_ID


def predict(store: Path, losses: Mapping[str, float], view: View | None = None) -> Path:
    """Keep perplexities under quantisers beside a store, as `outliers quantize --perplexity` does.

    Parameters
    ----------
    store : folder of a store
    losses : for each `Variant.label`, and for `PLAIN`, the mean negative log-likelihood in nats
    view : of which it is told

    Returns
    -------
    the record's file
    """
    data = open_store(store)
    chosen = outputs_view(view, data)
    numbers = range(data.sizes["sequence"]) if chosen.sequences is None else chosen.sequences
    tokens = tuple(int(lengths(data)[number]) - 1 for number in numbers)
    assert PLAIN in losses
    sums = {label: tuple(np.multiply(tokens, loss).tolist()) for label, loss in losses.items()}
    file = record_file(store, chosen)
    file.parent.mkdir(exist_ok=True)
    file.write_text(Predictions(chosen, tokens, sums, {STORE_ID: data.attrs[STORE_ID]}).dump())
    return file
