"""The model runs under the very schemes that the store is asked about: against plain hooks of PyTorch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from analyze import OutliersError, View, open_store, quantize  # noqa: E402
from analyze.cli import main  # noqa: E402
from analyze.quantization.errors import Variant  # noqa: E402
from analyze.quantization.schemes import scheme  # noqa: E402
from analyze.quantization.transforms import Plain  # noqa: E402
from analyze.quantization.variants import asked_variants, outputs_view  # noqa: E402
from capture.quantization.perplexity import quantize_with_perplexity  # noqa: E402
from capture.store.schema import QUANTIZATION  # noqa: E402
from capture.store.verify import verify  # noqa: E402

SCHEMES = ["int8-tensor", "int4-token", "mxfp4"]


@pytest.fixture(scope="module")
def captured(checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantised") / "s.zarr"
    words = ["--text", str(text_file), "--sequences", "3", "--length", "20", "--dtype", "float32", "--raw", "output"]
    assert main(["capture", str(checkpoint), "--out", str(out), *words]) == 0
    return out


@pytest.fixture
def store(captured: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(captured, tmp_path / "s.zarr"))


def hooked(checkpoint: Path, ids: np.ndarray, variant: Variant | None, layers: tuple[int, ...] = (0, 1, 2)) -> float:
    """Perplexity of the model with forward hooks on its norms, sequence by sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def hook(place: tuple[int, int]) -> Any:
        def edit(_: Any, __: Any, output: Any) -> Any:
            return torch.from_numpy(variant.applied(output[0].numpy(), place))[None] if variant is not None else output

        return edit

    for number, layer in enumerate(layers):
        block = model.model.layers[layer]
        block.input_layernorm.register_forward_hook(hook((number, 0)))
        block.post_attention_layernorm.register_forward_hook(hook((number, 1)))
    losses = []
    with torch.inference_mode():
        for row in ids:
            tokens = torch.from_numpy(row[None].astype(np.int64))
            logits = model(tokens).logits[0, :-1].double()
            losses += torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").tolist()
    return math.exp(np.mean(losses))


def test_perplexities_are_those_of_plain_hooks(store: Path, checkpoint: Path) -> None:
    found = quantize_with_perplexity(store, SCHEMES, thresholds=[2.0])
    ids = open_store(store)["token_id"].values
    assert found.perplexity == pytest.approx(hooked(checkpoint, ids, None), rel=1e-4)
    for row in found.rows_for_all:
        variant = Variant(scheme(row["scheme"]), Plain(), row["threshold"])
        assert row["perplexity"] == pytest.approx(hooked(checkpoint, ids, variant), rel=1e-3)
    assert {row["perplexity"] for row in found.rows() if row["layer"] is not None} == {None}
    rank = found.rank_correlation
    assert rank is not None
    from scipy.stats import spearmanr

    rows = found.rows_for_all
    expected = spearmanr([row[found.measure] for row in rows], [row["perplexity"] for row in rows])
    assert rank == {"spearman": expected.statistic, "p_value": expected.pvalue, "schemes": 4}


def test_transforms_are_at_work_in_the_model(store: Path, checkpoint: Path) -> None:
    data = open_store(store)
    names = ["hadamard", "smooth:0.5"]
    found = quantize_with_perplexity(store, ["int4-token"], transforms=names)
    variants = asked_variants(data, outputs_view(None, data), ["int4-token"], (), names, None)
    assert found.measure == "output_error"  # the capture measured the weights
    for row, variant in zip(found.rows_for_all, variants, strict=True):
        assert row["transform"] == variant.transform.name
        assert row["perplexity"] == pytest.approx(hooked(checkpoint, data["token_id"].values, variant), rel=1e-3)


def test_only_what_is_new_is_run_and_the_store_stays_sound(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quantize_with_perplexity(store, SCHEMES)
    (file,) = (store / QUANTIZATION).iterdir()
    monkeypatch.setattr("capture.quantization.perplexity.reload_model", lambda *_, **__: pytest.fail("it is known"))
    assert quantize_with_perplexity(store, SCHEMES[::-1]).rows_for_all == first.rows_for_all[::-1]
    monkeypatch.undo()
    again = quantize_with_perplexity(store, [*SCHEMES, "int4-tensor"])
    assert again.rows_for_all[:3] == first.rows_for_all
    assert verify(store).damage == ()
    # Without the model what is kept is shown, and what is not known is not.
    assert quantize(store, SCHEMES).rows() == first.rows()
    assert quantize(store, SCHEMES).rank_correlation == first.rank_correlation
    assert [row["perplexity"] is None for row in quantize(store, ["mxfp4", "nvfp4"]).rows_for_all] == [False, True]
    assert quantize(store, SCHEMES, view=View(sequences=(0,))).perplexity is None
    file.write_text(file.read_text().replace("test", "text", 1).replace("0.", "1.", 1))
    with pytest.raises(OutliersError, match="is damaged or of a newer release"):
        quantize_with_perplexity(store, SCHEMES)


def test_a_view_chooses_sequences_and_places(store: Path, checkpoint: Path) -> None:
    found = quantize_with_perplexity(store, ["int4-tensor"], view=View(sequences=(1,), layer_range=(1, 3)))
    ids = open_store(store)["token_id"].values[[1]]
    expected = hooked(checkpoint, ids, Variant(scheme("int4-tensor"), Plain()), (1, 2))
    assert found.rows_for_all[0]["perplexity"] == pytest.approx(expected, rel=1e-3)
    assert found.perplexity == pytest.approx(hooked(checkpoint, ids, None), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--skip-first", "1"], "perplexity is of whole sequences"),
        (["--scales-from", "x.zarr"], "perplexity is of one store"),
        (["--scheme", "int2-token"], "2 bits"),
        (["--model", "nowhere/none"], "cannot be loaded again"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], told: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(store), "--perplexity", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert told in error
    assert not (store / QUANTIZATION).exists()


def test_the_command_shows_error_and_perplexity_side_by_side(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(store), "--perplexity", *(word for name in SCHEMES for word in ("--scheme", name))]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == quantize_with_perplexity(store, SCHEMES).to_dict()
    assert set(told["rank_correlation"]) == {"spearman", "p_value", "schemes"}
    assert main(words) == 0
    assert "Spearman's rank correlation" in capsys.readouterr().out
