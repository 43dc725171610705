"""Every architecture captured under nnsight and compared bit for bit with plain PyTorch hooks at known places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nnsight import NNsight  # noqa: E402

from capture.sites.place import find_sites  # noqa: E402
from capture.trace import trace_batch  # noqa: E402
from tests.architectures import ARCHITECTURES, VOCABULARY  # noqa: E402

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 11), dtype=np.int32)
ALL = frozenset({"norm_input", "norm_output", "final_input"})


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The hidden states that a module receives, by position or by keyword; OPT flattens sequences and positions."""
    values = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    return next(value for value in values if value.is_floating_point()).reshape(*IDS.shape, -1).clone()


def hooked(model: Any, paths: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What modules receive and return in one plain forward pass."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}

    def watch(path: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            inputs[path] = first_tensor(args, kwargs)
            outputs[path] = result.reshape(*IDS.shape, -1).clone() if isinstance(result, torch.Tensor) else None

        return model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)

    handles = [watch(path) for path in paths]
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(IDS.astype(np.int64)), use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs, outputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_capture_is_bit_equal_to_plain_hooks(name: str, dtype: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(getattr(torch, dtype))
    placed = find_sites(model)
    expected = {
        (layer, site): (f"{architecture.blocks.format(layer)}.{place.module}", place.kind)
        for layer in range(placed.layers)
        for site, place in architecture.expected(layer).items()
    }
    inputs, outputs = hooked(model, {path for path, _ in expected.values()} | {architecture.final})
    seen: dict[tuple[str, int, int], Any] = {}
    batch = trace_batch(
        NNsight(model),
        placed,
        IDS,
        lambda variable, layer, site, values: seen.update({(variable, layer, site): values.clone()}),
        ALL,
    )
    assert len(seen) == 2 * len(expected) + 1
    peaks = []
    for (layer, site), (path, kind) in expected.items():
        column = placed.names.index(site)
        after = inputs[path] if kind == "none" else outputs[path]
        assert torch.equal(seen["norm_input", layer, column], inputs[path])
        assert torch.equal(seen["norm_output", layer, column], after)
        peaks.append(np.stack([value.float().abs().numpy() for value in (inputs[path], after)]))
        for signal, value in enumerate((inputs[path], after)):
            np.testing.assert_array_equal(
                batch.extremes[:, signal, 1, layer, column].float(), value.float().numpy().max(axis=1)
            )
    np.testing.assert_array_equal(torch.stack(batch.position_peaks).float(), np.max(peaks, axis=0))
    assert torch.equal(seen["final_input", 0, 0], inputs[architecture.final])
