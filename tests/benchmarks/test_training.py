"""A small model trained here, from its first step on, and captured at a dozen of them: the trajectory of a real run.

Three minutes of one core. Everything that `trajectory` says is compared with what each store alone says.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402

from analyze import Criteria, find_outliers, trajectory  # noqa: E402
from analyze.display.figures import save  # noqa: E402
from analyze.trajectories.figures import trajectory_figure  # noqa: E402
from capture.models.random_weights import byte_tokenizer  # noqa: E402
from capture.run import capture  # noqa: E402

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400, 600)
PLANTED, TRUTH = 500, 400
"""A checkpoint that is in truth the one of another step."""

WIDTH, LAYERS, BATCH, LENGTH = 64, 4, 16, 128


def network() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=None, eos_token_id=256, pad_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def trained(folder: Path) -> list[Path]:
    """Checkpoints `step-N` of a language model of bytes, trained on Python's own language reference."""
    from pydoc_data.topics import topics

    data = np.frombuffer("\n".join(topics.values()).encode(), np.uint8)
    model = network()
    tokenizer = byte_tokenizer(model.config)
    ids = torch.tensor(tokenizer(bytes(data).decode())["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    folders = []
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            folders.append(folder / f"step-{step}")
            model.save_pretrained(folders[-1])
            tokenizer.save_pretrained(folders[-1])
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 32)
        starts = torch.randint(len(ids) - LENGTH, (BATCH,), generator=generator)
        rows = torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    shutil.copytree(folder / f"step-{TRUTH}", folder / f"step-{PLANTED}")
    return sorted([*folders, folder / f"step-{PLANTED}"], key=lambda path: int(path.name.removeprefix("step-")))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    folder = Path(os.environ.get("TRAINING_FOLDER", tmp_path_factory.mktemp("training")))
    found = []
    for checkpoint in trained(folder):
        found.append(folder / f"{checkpoint.name}.zarr")
        capture(str(checkpoint), found[-1], text="python-docs", sequences=8, length=256, dtype="float32")
    return found


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(),
        Criteria(magnitude=3),
        Criteria.preset("study", magnitude=2),
        Criteria.preset("dettmers", magnitude=3),
    ],
    ids=str,
)
def test_the_trajectory_says_what_each_store_says(stores: list[Path], criteria: Criteria) -> None:
    result = trajectory(stores, criteria)
    sets = []
    for path, row in zip(stores, result.rows(), strict=True):
        alone = find_outliers(path, criteria)
        for name in ("count", "distinct_features", "mean_layer_fraction", "mean_position_fraction", "perplexity"):
            np.testing.assert_equal(row[name], getattr(alone, name))
        sets.append({outlier.feature for outlier in alone.features})
    assert set().union(*sets) == {row["feature"] for row in result.births()}
    for (before, now), row in zip(itertools.pairwise(sets), result.rows()[1:], strict=True):
        assert (row["kept"], row["new"], row["gone"]) == (len(before & now), len(now - before), len(before - now))
    print(f"\n{result}")


def test_the_planted_duplicate_is_found(stores: list[Path]) -> None:
    (found,) = (one for one in trajectory(stores).duplicates if PLANTED in one.steps)
    assert (found.steps, found.same_losses) == ((TRUTH, PLANTED), True)
    assert all(one.same_losses or PLANTED not in one.steps for one in trajectory(stores).duplicates)


def test_the_model_has_learnt(stores: list[Path]) -> None:
    result = trajectory(stores, Criteria(magnitude=3))
    perplexities = [row["perplexity"] for row in result.rows()]
    assert perplexities[-1] < perplexities[0] / 10
    if figure := os.environ.get("TRAINING_FIGURE"):
        save(trajectory_figure(result), figure)
