"""Names of checkpoints as the hub has them, worked by hand."""

from __future__ import annotations

import pytest

from analyze.trajectories.names import checkpoint_name


@pytest.mark.parametrize(
    ("name", "step", "tokens", "run"),
    [
        ("step1000", 1000, None, ""),
        ("step0", 0, None, ""),
        ("stage1-step5000-tokens11B", 5000, 11 * 10**9, "stage1"),
        ("stage2-ingredient1-step1000-tokens5B", 1000, 5 * 10**9, "stage2-ingredient1"),
        ("step1000-tokens4B", 1000, 4 * 10**9, ""),
        ("global_step95000", 95_000, None, ""),
        ("checkpoint-500", 500, None, ""),
        ("iter_0001000", 1000, None, ""),
        ("step-120000", 120_000, None, ""),
        ("my-run_step_20_tokens1.5M", 20, 1_500_000, "my-run"),
    ],
)
def test_names_of_the_hub(name: str, step: int, tokens: int | None, run: str) -> None:
    found = checkpoint_name(name)
    assert found is not None
    assert (found.step, found.tokens, found.run) == (step, tokens, run)


@pytest.mark.parametrize(
    "name",
    ["main", "step10k", "misstep12", "step1-step2", "a5c1b2", "step", "v1.0", "step1.5", "step3-tokens1B-tokens2B"],
)
def test_a_name_without_one_step_says_none(name: str) -> None:
    assert checkpoint_name(name) is None
