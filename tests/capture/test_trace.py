"""What the trace hands on is what plain PyTorch hooks see, bit for bit."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

torch = pytest.importorskip("torch")

from nnsight import NNsight  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from capture.losses import token_nll  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from capture.trace import Peaks, extremes, trace_batch  # noqa: E402
from tests.conftest import tiny_llama  # noqa: E402

ALL = frozenset({"norm_input", "norm_output", "final_input"})
IDS = np.random.default_rng(0).integers(0, 64, (3, 10), dtype=np.int32)


def hooked(model: Any, ids: Any, paths: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of modules as plain forward hooks see them."""
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}

    def watch(path: str) -> Any:
        def hook(module: Any, args: Any, result: Any) -> None:
            inputs[path], outputs[path] = args[0].clone(), result.clone()

        return model.get_submodule(path).register_forward_hook(hook)

    handles = [watch(path) for path in paths]
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(ids.astype(np.int64)), use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs, outputs


def traced(model: Any, ids: Any = IDS, *, careful: bool = True) -> tuple[dict[tuple[str, int, int], Any], Any]:
    seen: dict[tuple[str, int, int], Any] = {}
    batch = trace_batch(
        NNsight(model),
        find_sites(model),
        ids,
        lambda name, layer, site, values: seen.update({(name, layer, site): values.clone()}),
        ALL,
        careful=careful,
    )
    return seen, batch


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_activations_are_bit_equal_to_plain_hooks(dtype: str, careful: bool) -> None:
    model = tiny_llama(dtype)
    names = ("input_layernorm", "post_attention_layernorm")
    paths = [f"model.layers.{layer}.{name}" for layer in range(3) for name in names]
    inputs, outputs = hooked(model, IDS, [*paths, "model.norm"])
    seen, batch = traced(model, careful=careful)
    assert len(seen) == 2 * len(paths) + 1
    for layer in range(3):
        for site, name in enumerate(names):
            path = f"model.layers.{layer}.{name}"
            assert torch.equal(seen["norm_input", layer, site], inputs[path])
            assert torch.equal(seen["norm_output", layer, site], outputs[path])
            for signal, values in enumerate((inputs[path], outputs[path])):
                wide = values.float().numpy()
                np.testing.assert_array_equal(batch.extremes[:, signal, 1, layer, site].float(), wide.max(1))
                np.testing.assert_array_equal(batch.extremes[:, signal, 0, layer, site].float(), wide.min(1))
    assert torch.equal(seen["final_input", 0, 0], inputs["model.norm"])
    for signal, source in enumerate((inputs, outputs)):
        stacked = np.stack([np.abs(source[path].float().numpy()) for path in paths])
        np.testing.assert_array_equal(batch.position_peaks[signal].float(), stacked.max(0))
    assert not batch.nonfinite_count.any()


def test_nll_is_that_of_the_model_itself() -> None:
    model = tiny_llama()
    tokens = torch.from_numpy(IDS.astype(np.int64))
    _, batch = traced(model)
    nll = batch.nll.numpy()
    assert np.isnan(nll[:, 0]).all()
    with torch.inference_mode():
        loss = model(input_ids=tokens, labels=tokens).loss
    np.testing.assert_allclose(nll[:, 1:].mean(), loss.item(), rtol=1e-6)


@pytest.mark.parametrize("positions", [1, 2, 128, 129, 130, 300])
def test_nll_of_any_length(positions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, positions, 7, generator=generator)
    ids = torch.randint(0, 7, (2, positions), generator=generator)
    nll = token_nll(logits, ids).numpy()
    assert np.isnan(nll[:, 0]).all()
    for n in range(2):
        for p in range(1, positions):
            scores = logits[n, p - 1].double().numpy()
            expected = np.log(np.exp(scores).sum()) - scores[ids[n, p]]
            np.testing.assert_allclose(nll[n, p], expected, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=4),
        elements=st.sampled_from([0.0, -0.0, 1.5, -7.0, 3e38, np.nan, np.inf, -np.inf]),
    )
)
def test_extremes_pass_over_nan_and_count_it(values: Any) -> None:
    low, high, count = extremes(torch.from_numpy(values))
    np.testing.assert_array_equal(high.numpy(), np.fmax.reduce(values, axis=1))
    np.testing.assert_array_equal(low.numpy(), np.fmin.reduce(values, axis=1))
    np.testing.assert_array_equal(count.numpy(), (~np.isfinite(values)).sum((1, 2)))


CELLS = st.sampled_from([0.0, -0.0, 1.5, -7.0, 3e38, np.nan, np.inf, -np.inf])


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(2), st.integers(1, 4), st.integers(1, 3)),
        elements=CELLS,
    ),
    dtypes=st.lists(st.sampled_from(["float32", "bfloat16"]), min_size=2, max_size=2),
    careful=st.booleans(),
)
def test_peaks_of_anything_are_those_of_numpy_or_known_to_be_wrong(
    values: Any, dtypes: list[str], careful: bool
) -> None:
    peaks, wide = Peaks(2, 1, careful=careful), []
    for layer, dtype in enumerate(dtypes):  # layers of a mixed model
        matrix = torch.from_numpy(values[:, layer]).to(getattr(torch, dtype))
        peaks.add(layer, 0, matrix)
        wide.append(matrix.float().numpy())
    stacked = np.stack(wide, axis=1)
    assert bool(peaks.extremes.isfinite().all()) == bool(np.isfinite(stacked).all()) or careful
    if careful or np.isfinite(stacked).all():
        np.testing.assert_array_equal(peaks.extremes[:, 0, :, 0].float(), np.fmin.reduce(stacked, axis=2))
        np.testing.assert_array_equal(peaks.extremes[:, 1, :, 0].float(), np.fmax.reduce(stacked, axis=2))
        np.testing.assert_array_equal(peaks.position_peak.float(), np.fmax.reduce(np.abs(stacked), axis=1))
        np.testing.assert_array_equal(peaks.nonfinite_count[..., 0], (~np.isfinite(stacked)).sum((2, 3)))


def test_nan_in_the_model_is_counted_and_passed_over() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[63, 5] = torch.nan
    ids = np.array([[1, 2, 3], [1, 63, 3]], np.int32)
    _, batch = traced(model, ids)
    count = batch.nonfinite_count
    assert count[0].sum() == 0
    assert count[1, 0, 0, 0] == 1
    assert count[1, 1, 0, 0] == 24  # the norm spreads it over all features
    assert batch.extremes[1, 0, :, 0, 0].isfinite().all()  # other positions are finite
    assert all(peak[1, 0].isfinite().all() for peak in batch.position_peaks)


class Waiting(TorchDispatchMode):
    """Counts the operations for whose result a GPU would have to be waited for."""

    OPERATIONS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.OPERATIONS
        return func(*args, **(kwargs or {}))


def waits(layers: int, *, careful: bool) -> int:
    """How often a trace of one batch waits, beside the waits of the model itself."""
    model = tiny_llama(layers=layers)
    with torch.inference_mode(), Waiting() as bare:
        model(input_ids=torch.from_numpy(IDS.astype(np.int64)), use_cache=False)
    wrapped, placed = NNsight(model), find_sites(model)
    with Waiting() as whole:
        trace_batch(wrapped, placed, IDS, lambda *_: None, frozenset(), careful=careful)
    return whole.count - bare.count


def test_a_trace_that_is_not_careful_waits_for_nothing() -> None:
    assert [waits(layers, careful=False) for layers in (2, 9)] == [0, 0]
    assert waits(2, careful=True) >= 2 * 2 * 2  # what the count would see


def test_what_the_sink_raises_comes_out_as_it_is() -> None:
    def full(name: str, layer: int, site: int, values: Any) -> None:
        raise OSError(28, "No space left on device")

    model = tiny_llama()
    with pytest.raises(OSError, match="No space left"):
        trace_batch(NNsight(model), find_sites(model), IDS, full, ALL)


def test_activations_do_not_pile_up_with_the_layers() -> None:
    model = tiny_llama(layers=12)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def sink(name: str, layer: int, site: int, values: Any) -> None:
        nonlocal most
        alive.append(weakref.ref(values))
        most = max(most, sum(reference() is not None for reference in alive))

    trace_batch(NNsight(model), find_sites(model), IDS, sink, ALL)
    assert len(alive) == 49
    assert most <= 6
