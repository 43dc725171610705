"""A capture on a GPU: what plain hooks see there, bit for bit, and NaN passed over as on a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from transformers import AutoModelForCausalLM  # noqa: E402

from capture.run import capture  # noqa: E402
from capture.store.verify import verify  # noqa: E402
from tests.conftest import tiny_llama  # noqa: E402


def hooked(model: Any, ids: Any) -> dict[str, list[Any]]:
    """Inputs and outputs of all norms, a pair for each sequence, as float32."""
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if "norm" in name:
            module.register_forward_hook(
                lambda _, args, result, name=name: seen.setdefault(name, []).append(
                    (args[0].float().cpu().numpy()[0], result.float().cpu().numpy()[0])
                )
            )
    with torch.inference_mode():
        for row in torch.from_numpy(ids.astype(np.int64)).cuda():
            model(input_ids=row[None], use_cache=False)
    return seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("spoilt", [False, True])
def test_a_store_holds_what_plain_hooks_see(
    checkpoint: Path, text_file: Path, tmp_path: Path, dtype: str, spoilt: bool
) -> None:
    model = tiny_llama()
    if spoilt:
        with torch.no_grad():
            model.model.embed_tokens.weight[7, 5] = torch.nan
            model.model.embed_tokens.weight[7, 6] = torch.inf
    shutil.copytree(checkpoint, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"text": str(text_file), "sequences": 6, "length": 24, "dtype": dtype, "device": "cuda:0"}
    path = capture(str(tmp_path / "model"), tmp_path / "s.zarr", raw="both", **options)
    dataset = xr.open_zarr(path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=getattr(torch, dtype))
    seen = hooked(loaded.to("cuda"), dataset.token_id.values)
    for kind, signal in enumerate(("input", "output")):
        raw = dataset[f"norm_{signal}"].values
        for site, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            for layer in range(3):
                expected = np.stack([pair[kind] for pair in seen[f"model.layers.{layer}.{name}"]])
                np.testing.assert_array_equal(raw[:, layer, site], expected)
        peaks = dataset.sel(signal=signal)
        np.testing.assert_array_equal(peaks.layer_high, np.fmax.reduce(raw, axis=3))
        np.testing.assert_array_equal(peaks.layer_low, np.fmin.reduce(raw, axis=3))
        np.testing.assert_array_equal(peaks.position_peak, np.fmax.reduce(np.abs(raw), axis=(1, 2)))
        np.testing.assert_array_equal(peaks.nonfinite_count, (~np.isfinite(raw)).sum((3, 4)))
    assert bool(dataset.nonfinite_count.any()) == spoilt
    assert not verify(path).damage
