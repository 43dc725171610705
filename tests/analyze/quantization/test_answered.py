"""What is known of quantisers without a pass: the cache's answers, and the record of this very store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze import OutliersError, View, compare, open_store, quantize, write_report
from analyze.quantization import quantize as module_of
from analyze.quantization.errors import label_key
from analyze.quantization.quantize import answered
from analyze.quantization.record import PLAIN
from tests import builders, records

SHAPE = (3, 2, 2, 9, 40)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations(SHAPE), length=np.array([9, 4, 6]))


def by_variant(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["scheme"], row["transform"], row["threshold"], row["layer"], row["site"]): row for row in rows}


def test_it_has_every_answer_of_the_view_and_reads_no_activations(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(store) is None
    first = quantize(store, ["int8-token"], thresholds=[2, 6])
    second = quantize(store, ["mxfp4", "int4-tensor"], transforms=["hadamard:3"])
    quantize(store, ["nvfp4"], view=View(skip_first=1))
    monkeypatch.setattr(module_of, "stream_places", lambda *_: pytest.fail("a pass"))
    found = answered(store)
    assert found is not None
    assert by_variant(found.rows()) == by_variant([*first.rows(), *second.rows()])
    assert (found.tokens, found.left_out, found.perplexity) == (19, 0, None)
    other = answered(store, View(skip_first=1))
    assert other is not None
    assert [row["scheme"] for row in other.rows_for_all] == ["nvfp4"]
    assert answered(open_store(store).isel(layer=slice(1))) is None


def test_perplexities_are_known_without_errors_and_beside_them(store: Path) -> None:
    records.predict(store, {PLAIN: 2.0, "mxfp4|none|": 2.5, "int8-token|none|": 2.1, "int8-token|none|6.0": 2.05})
    bare = answered(store)
    assert bare is not None
    rows = {(row["scheme"], row["threshold"]): row for row in bare.rows_for_all}
    assert bare.perplexity == pytest.approx(np.exp(2))
    assert rows["mxfp4", None]["perplexity"] == pytest.approx(np.exp(2.5))
    assert (rows["mxfp4", None]["error"], rows["mxfp4", None]["bits"]) == (None, 4.25)
    assert (rows["int8-token", 6.0]["bits"], bare.rank_correlation, bare.left_out) == (None, None, None)
    json.dumps(bare.to_dict(), allow_nan=False)
    assert bare.best_first()[0]["worst_error"] is None
    quantize(store, ["int8-token", "mxfp4"], thresholds=[6, 9])
    both = answered(store)
    assert both is not None
    assert both.rank_correlation == {"spearman": 1.0, "p_value": 0.0, "schemes": 3}
    assert len(both.rows_for_all) == 4
    assert answered(store, View(sequences=(0,))) is None


def test_the_record_is_of_the_store_as_it_was_opened(store: Path) -> None:
    records.predict(store, {PLAIN: 2.0, "mxfp4|none|": 2.5})
    assert quantize(store, ["mxfp4"]).perplexity is not None
    assert quantize(open_store(store).isel(layer=slice(1)), ["mxfp4"]).perplexity is None


SHOWN: dict[str, Callable[[Path, Path], Any]] = {
    "quantize": lambda store, _: quantize(store, ["mxfp4"]),
    "compare": lambda store, _: compare([store], resamples=20),
    "report": lambda store, folder: write_report(store, folder / "r.html"),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_a_record_that_is_not_of_this_store_is_shown_nowhere(
    show: Callable[[Path, Path], Any], store: Path, tmp_path: Path
) -> None:
    other = builders.on_disk(tmp_path / "o.zarr", builders.random_activations(SHAPE), length=np.array([9, 4, 6]))
    losses = {PLAIN: 2.0, "mxfp4|none|": 2.5}
    own, foreign = records.predict(store, losses), records.predict(other, losses)
    text = own.read_text()
    show(store, tmp_path)
    shutil.copy(foreign, own)
    with pytest.raises(OutliersError, match=r"of another store or question .*quantize --perplexity again"):
        show(store, tmp_path)
    # The record of a part of the sequences, under the name of that of all.
    shutil.copy(records.predict(store, losses, View(sequences=(0, 1))), own)
    with pytest.raises(OutliersError, match="is the record of another store"):
        show(store, tmp_path)
    own.write_text(text.replace("2.5", "2.4"))
    with pytest.raises(OutliersError, match="is damaged or of a newer release"):
        show(store, tmp_path)


@pytest.mark.parametrize(
    "label",
    [
        "mxfp4",
        "mxfp4|none",
        "mxfp4|none|x",
        "mxfp4|none|6",
        "mxfp4|none|nan",
        "mxfp4|none|0.0",
        "awq|none|",
        "mxfp4|q|",
    ],
)
def test_what_is_no_label_makes_no_record(label: str, store: Path) -> None:
    with pytest.raises((ValueError, OutliersError)):
        label_key(label)
    records.predict(store, {PLAIN: 2.0, label: 2.5})
    with pytest.raises(OutliersError, match="is damaged or of a newer release"):
        quantize(store, ["mxfp4"])
