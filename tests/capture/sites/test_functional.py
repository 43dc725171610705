"""What follows when a site's output is forced: a truth about `feeds` that the probe does not use.

Hooks show where a tensor went; this shows that it went nowhere else. Without weights' values nothing of it can be told,
so the probe cannot have used it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from capture.ablation.interventions import find_targets  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from capture.sites.trial import refuse_lookahead  # noqa: E402
from tests.architectures import ARCHITECTURES, EACH, VOCABULARY  # noqa: E402

TOKENS = torch.randint(1, VOCABULARY, (1, 7), generator=torch.Generator().manual_seed(0))


@contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forced_input(argument: int | str) -> Callable[..., Any]:
    """A hook that makes zero what a module receives under an argument."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(argument, str):
            return args, {**kwargs, argument: torch.zeros_like(kwargs[argument])}
        return tuple(torch.zeros_like(a) if n == argument else a for n, a in enumerate(args)), kwargs

    return hook


def stream(model: Any, tokens: Any) -> Any:
    """What the blocks return in the end, (position, feature)."""
    return model(input_ids=tokens, use_cache=False, output_hidden_states=False).logits[0]


@pytest.mark.parametrize("name", EACH)
def test_without_what_the_sites_feed_no_position_hears_of_another(name: str) -> None:
    """Every reader of the stream forced to zero leaves each position its own token, and nothing of others."""
    model = ARCHITECTURES[name].build()
    targets = find_targets(model, find_sites(model))
    other = TOKENS.clone()
    other[0, 0] = other[0, 0] % (VOCABULARY - 1) + 1  # never 0, at which RoBERTa's positions count anew
    with torch.inference_mode():
        assert not torch.equal(stream(model, TOKENS)[1:], stream(model, other)[1:])
        with hooks(
            [
                model.get_submodule(target.path).register_forward_pre_hook(
                    forced_input(target.argument), with_kwargs=True
                )
                for target in targets
            ]
        ):
            before, after = stream(model, TOKENS), stream(model, other)
    torch.testing.assert_close(before[1:], after[1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[0], after[0], rtol=1e-3, atol=1e-4)  # the stream itself goes through


@pytest.mark.parametrize("name", EACH)
def test_a_norm_speaks_to_what_it_feeds_and_to_nobody_else(name: str) -> None:
    """Its output forced to zero does what the zero in front of its readers does."""
    model = ARCHITECTURES[name].build()
    found = find_sites(model)
    targets = find_targets(model, found)
    normed = [site for site in found.sites if site.kind != "none" and site.layer == 0]
    if not normed:
        pytest.skip("no norm before its sublayers")
    for site in normed:
        norm = model.get_submodule(site.module)
        readers = [target for target in targets if target.path in site.feeds]
        with torch.inference_mode():
            with hooks([norm.register_forward_hook(lambda _, args, output: torch.zeros_like(output))]):
                forced = stream(model, TOKENS)
            handles = [
                model.get_submodule(target.path).register_forward_pre_hook(
                    forced_input(target.argument), with_kwargs=True
                )
                for target in readers
            ]
            with hooks(handles):
                read = stream(model, TOKENS)
            plain = stream(model, TOKENS)
        torch.testing.assert_close(forced, read, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain, read, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_every_tested_decoder_looks_back_alone(name: str) -> None:
    assert refuse_lookahead(ARCHITECTURES[name].build())
