"""What was predicted for another store is not taken for this one's."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from analyze import OutliersError, View, open_store, quantize
from analyze.answers.records import write_record
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
    for ask in (quantize, quantize_with_perplexity):
        assert ask(stores[0], ["int8-token"]).perplexity == pytest.approx(math.exp(6 / 18))
        with pytest.raises(OutliersError, match="is the record of another store .* run outliers quantize --perplexity"):
            ask(stores[1], ["int8-token"])


def test_predictions_for_another_view_are_refused(tmp_path: Path) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    losses = dict.fromkeys((PLAIN, "int8-token|none|"), (1.0, 2.0))
    views = [outputs_view(View(sequences=chosen), open_store(store)) for chosen in ((0, 1), (1, 2))]
    file = record_file(store, views[1])
    file.parent.mkdir()
    file.write_text(Predictions(views[0], (6, 6), losses, {"store_id": open_store(store).attrs["store_id"]}).dump())
    for ask in (quantize, quantize_with_perplexity):
        with pytest.raises(OutliersError, match="is the record of another store or question"):
            ask(store, ["int8-token"], view=View(sequences=(1, 2)))


def test_a_record_is_written_into_its_own_store_alone_and_through_no_link(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    store, other = open_store(path), tmp_path / "mine.txt"
    other.write_text("mine")
    file = path / "quantization" / "0.json"
    write_record(store, file, "{}")
    file.unlink()
    file.symlink_to(other)
    write_record(store, file, "{}")
    assert (file.read_text(), other.read_text(), file.is_symlink()) == ("{}", "mine", False)
    shutil.rmtree(path)
    builders.on_disk(path, builders.random_activations(seed=1))
    for _ in range(2):
        with pytest.raises(OutliersError, match="was replaced or removed since it was opened"):
            write_record(store, file, "{}")
        assert not file.exists()
        shutil.rmtree(path, ignore_errors=True)
