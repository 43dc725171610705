"""Captures of a model that is loaded already, and the forward passes that they ride on, to be timed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from capture import run
from capture.models.load import Description, Loaded
from capture.progress import Silence
from tests.benchmarks.table import Spent


class Clock(Silence):
    """Begins with the loop over sequences."""

    def start(self, total: int, done: int) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def spent(self) -> Spent:
        """Since the loop began."""
        return Spent(time.perf_counter() - self.wall, time.process_time() - self.processor)


def captured(loaded: Loaded, out: Path, request: dict[str, Any], raw: str) -> Spent:
    """A capture; what counts is the loop over sequences, until all of them are durable."""
    shutil.rmtree(out, ignore_errors=True)
    clock = Clock()
    with patch.object(Description, "load", lambda self: loaded):
        run.capture(out=out, raw=raw, reporter=clock, **request)
    return clock.spent()


def bare(loaded: Loaded, tokens: np.ndarray) -> None:
    """Forward passes with logits and nothing else."""
    device = loaded.model.get_input_embeddings().weight.device
    with torch.inference_mode():
        for row in torch.from_numpy(tokens.astype(np.int64)).to(device):
            loaded.model(input_ids=row[None], use_cache=False).logits  # noqa: B018
    synchronise(loaded)


def synchronise(loaded: Loaded) -> None:
    """Wait for a GPU."""
    if loaded.model.device.type == "cuda":
        torch.cuda.synchronize(loaded.model.device)
