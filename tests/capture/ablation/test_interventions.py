"""Zeroing under nnsight does what plain PyTorch hooks do, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nnsight import NNsight  # noqa: E402

from capture.ablation.interventions import Target, attention_peaks, find_targets, predictions, zeroed  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.losses import token_nll  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from capture.sites.probe import plain_attention  # noqa: E402
from tests.architectures import ARCHITECTURES, HIDDEN, VOCABULARY  # noqa: E402

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 9), dtype=np.int32)
TOKENS = torch.from_numpy(IDS.astype(np.int64))
FEATURES = (3, 17, 40)

# Serial, parallel with one norm, parallel with two, post-norm, norm output in the residual stream, flattened
# feed-forward, layers without attention, attention that transformers cannot switch, experts.
NAMES = (
    "llama",
    "gpt2",
    "phi",
    "gptj",
    "gpt_neox_parallel",
    "olmo2",
    "bloom",
    "opt",
    "qwen3_next",
    "falcon_7b",
    "dbrx",
    "falcon_h1",
    "git",
    "minimax",
)
MIXERS = (
    "attention.self",
    "self_attn",
    "attn",
    "attention",
    "self_attention",
    "linear_attn",
    "norm_attn_norm.attn",
    "mamba",
    "conv",
)


def readers(name: str, part: str) -> list[str]:
    """Paths of the modules that read, from the expectations written by hand."""
    architecture = ARCHITECTURES[name]
    layers = architecture.config().get_text_config().num_hidden_layers
    return [
        f"{architecture.blocks.format(layer)}.{path}"
        for layer in range(layers)
        for place in architecture.expected(layer).values()
        for path in place.feeds
        if part == "both" or (path in MIXERS or (path == "mixer" and layer in (0, 2))) == (part == "ln_attn")
    ]


def without(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a module with the features of the first floating tensor zero."""

    def edited(value: Any) -> Any:
        value = value.clone()
        value[..., list(FEATURES)] = 0
        return value

    def is_stream(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    if args and is_stream(args[0]):
        return (edited(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": edited(kwargs["hidden_states"])}


def hooked_logits(model: Any, paths: Iterable[str]) -> Any:
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, kwargs: without(args, kwargs), with_kwargs=True
        )
        for path in paths
    ]
    with torch.inference_mode():
        logits = model(input_ids=TOKENS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def chosen(targets: list[Target], part: str) -> list[Target]:
    return [target for target in targets if part == "both" or target.attention == (part == "ln_attn")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_those_under_plain_hooks(name: str, dtype: str) -> None:
    model = ARCHITECTURES[name].build(getattr(torch, dtype))
    traced, targets = NNsight(model), find_targets(model, find_sites(model))
    plain = hooked_logits(model, ())
    seen = []
    for part in ("ln_attn", "ln_mlp", "both"):
        logits = hooked_logits(model, readers(name, part))
        nll, largest = predictions(traced, chosen(targets, part), IDS, FEATURES)
        np.testing.assert_array_equal(nll, token_nll(logits, TOKENS))
        expected = torch.softmax(logits.double(), dim=-1).amax(-1).mean(1).numpy()
        np.testing.assert_allclose(largest, expected, rtol=1e-5)
        assert not np.array_equal(nll[:, 1:], token_nll(plain, TOKENS)[:, 1:])
        seen.append(nll)
    assert not np.array_equal(seen[0], seen[2])
    nll, _ = predictions(traced, targets, IDS, ())
    np.testing.assert_array_equal(nll, token_nll(plain, TOKENS))


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_that_of_one_edited_layer_at_a_time(name: str) -> None:
    model = ARCHITECTURES[name].build()
    placed = find_sites(model)
    targets = find_targets(model, placed)
    before = model.config._attn_implementation
    with plain_attention(model):
        found = attention_peaks(NNsight(model), targets, placed.layers, IDS, [(), FEATURES])
        expected = np.full(found.shape, np.nan)
        for path in readers(name, "ln_attn"):
            layer = next(target.layer for target in targets if target.path == path)
            kept: list[Any] = []
            handle = model.get_submodule(path).register_forward_hook(lambda *call, kept=kept: kept.append(call[-1]))
            for variant, edited in enumerate(([], [path])):
                hooked_logits(model, edited)
                weights = kept.pop()[1] if isinstance(kept[-1], tuple) else kept.pop()
                if weights.shape[-2:] == (IDS.shape[1],) * 2 and weights.ndim == 4:
                    assert not weights.triu(1).any()  # nobody looks ahead
                    expected[variant, :, layer] = weights.double().max(-1).values.mean((1, 2)).numpy()
            handle.remove()
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).any()
    assert not np.array_equal(found[0], found[1], equal_nan=True)
    assert model.config._attn_implementation == before


def test_what_attends_beside_the_pass_leaves_no_trace_in_it() -> None:
    model = ARCHITECTURES["llama"].build()
    placed, before = find_sites(model), hooked_logits(model, ())
    targets = find_targets(model, placed)
    traced = NNsight(model)
    with plain_attention(model):
        one = attention_peaks(traced, targets, placed.layers, IDS, [()])
        many = attention_peaks(traced, targets, placed.layers, IDS, [FEATURES, (1, 2), ()])
    np.testing.assert_array_equal(one[0], many[2])
    assert torch.equal(hooked_logits(model, ()), before)


def test_zeroed_leaves_the_original_alone() -> None:
    values = torch.arange(1.0, 13).reshape(1, 3, 4)
    kept = values.clone()
    result = zeroed(values, (0, 2))
    assert torch.equal(values, kept)
    assert result[0].tolist() == [[0, 2, 0, 4], [0, 6, 0, 8], [0, 10, 0, 12]]


@pytest.mark.parametrize(
    "name", [name if name in NAMES else pytest.param(name, marks=pytest.mark.exhaustive) for name in ARCHITECTURES]
)
def test_every_reader_is_found(name: str) -> None:
    model = ARCHITECTURES[name].build()
    targets = find_targets(model, find_sites(model))
    assert {target.path for target in targets if target.attention} == set(readers(name, "ln_attn"))
    assert {target.path for target in targets} == set(readers(name, "both"))


def test_sites_of_another_model_are_refused() -> None:
    llama, gpt2 = ARCHITECTURES["llama"].build(), ARCHITECTURES["gpt2"].build()
    with pytest.raises(OutliersError, match="no module that this model runs"):
        find_targets(gpt2, find_sites(llama))


def test_failures_come_out_as_they_are() -> None:
    model = ARCHITECTURES["llama"].build()
    targets = find_targets(model, find_sites(model))
    with pytest.raises(IndexError):
        predictions(NNsight(model), targets, IDS, (HIDDEN,))
    with plain_attention(model), pytest.raises(IndexError):
        attention_peaks(NNsight(model), targets, 2, IDS, [(HIDDEN,)])
