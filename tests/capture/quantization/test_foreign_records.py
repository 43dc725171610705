"""What was predicted for another store is not taken for this one's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from analyze import OutliersError, View, open_store
from analyze.quantization.record import PLAIN, Predictions, record_file
from analyze.quantization.variants import outputs_view
from capture.quantization.perplexity import quantize_with_perplexity
from tests import builders


def test_predictions_for_another_store_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    stores = [builders.on_disk(tmp_path / f"{n}.zarr", builders.random_activations(seed=n)) for n in range(2)]
    name = open_store(stores[0]).attrs["store_id"]
    files = [record_file(store, outputs_view(View(), open_store(store))) for store in stores]
    losses = dict.fromkeys((PLAIN, "int8-token|none|"), (1.0, 2.0, 3.0))
    view = outputs_view(View(), open_store(stores[0]))
    files[0].parent.mkdir()
    files[0].write_text(Predictions(view, (6, 6, 6), losses, {"store_id": name}).dump())
    files[1].parent.mkdir()
    shutil.copy(files[0], files[1])
    with pytest.raises(OutliersError, match="is the record of another store, .* run outliers quantize --perplexity"):
        quantize_with_perplexity(stores[1], ["int8-token"])
