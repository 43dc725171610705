"""The memory that `estimate` predicts is what a capture takes, where logits and losses are most of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from capture.batches import capture_sequences  # noqa: E402
from capture.estimate import estimate  # noqa: E402
from capture.models.load import Loaded  # noqa: E402
from capture.models.traced import traced  # noqa: E402
from capture.progress import Silence  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from capture.store.create import create  # noqa: E402
from capture.store.schema import Sizes  # noqa: E402
from capture.store.write import StoreWriter  # noqa: E402

pytestmark = pytest.mark.slow

VOCABULARY = 20_000


def most_allocated(trace: Path) -> int:
    """Largest memory of tensors at any moment of a profile, beyond what there was first."""
    events = json.loads(trace.read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    return max(held) - held[0]


@pytest.mark.parametrize("raw", ["input", "none"])
@pytest.mark.parametrize(
    ("dtype", "length", "batch_size"), [("float32", 64, 1), ("bfloat16", 64, 2), ("bfloat16", 12, 1)]
)
def test_memory_is_near_the_truth(tmp_path: Path, dtype: str, length: int, batch_size: int, raw: str) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        dtype=dtype,
    )
    config.save_pretrained(tmp_path / "model")
    sequences = 2 * batch_size
    predicted = estimate(str(tmp_path / "model"), sequences=sequences, length=length, batch_size=batch_size, raw=raw)
    model: Any = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    placed = find_sites(model)
    sizes = Sizes(sequences, placed.layers, placed.names, length, placed.hidden_size)
    create(
        tmp_path / "s.zarr",
        sizes,
        raw=raw,
        attributes={"model_id": "tiny", "compute_dtype": dtype},
        token_id=np.random.default_rng(0).integers(0, VOCABULARY, (sequences, length), dtype=np.int32),
        norm_weight=np.ones((sizes.layers, 2, 16), np.float32),
    )
    loaded = Loaded(model, traced(model), None, {})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.zeros(1)
        capture_sequences(loaded, placed, StoreWriter(tmp_path / "s.zarr"), range(sequences), batch_size, Silence())
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    assert predicted.working_bytes == pytest.approx(most_allocated(tmp_path / "trace.json"), rel=0.1)
