"""Rows of docs/benchmarks.md, timings in turns, and large stores of made-up values."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capture.store import write
from capture.store.create import create
from capture.store.schema import Sizes

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
SITES = ("ln_attn", "ln_mlp")


def record(section: str, what: str, figure: str, beside: str = "") -> None:
    """Print a row and, where UPDATE_DOCS is set, put it into the table of its section, in place of an older one.

    `beside` stands in the last column: an aim, or a second figure.
    """
    row = f"| {what} | {figure} | {beside} |"
    print(f"\n{row}")
    if not os.environ.get("UPDATE_DOCS"):
        return
    lines = PAGE.read_text().splitlines()
    start = lines.index(f"## {section}")
    stop = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    rows = [i for i in range(start, stop) if lines[i].startswith("|")]
    same = [i for i in rows if lines[i].startswith(f"| {what} |")]
    if same:
        lines[same[0]] = row
    else:
        lines.insert(rows[-1] + 1, row)
    PAGE.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Spent:
    """Wall and processor seconds of the part of a way that counts."""

    wall: float
    processor: float


def in_turns(rounds: int, *ways: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Median wall and processor seconds of each way, taken in turns so that a noisy neighbour meets all of them.

    A way counts from its begin to its end, unless it returns what of it counts.
    """
    wall: list[list[float]] = [[] for _ in ways]
    processor: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for number, way in enumerate(ways):
            began, used = time.perf_counter(), time.process_time()
            result = way()
            whole = Spent(time.perf_counter() - began, time.process_time() - used)
            spent = result if isinstance(result, Spent) else whole
            wall[number].append(spent.wall)
            processor[number].append(spent.processor)
    return [statistics.median(taken) for taken in wall], [statistics.median(taken) for taken in processor]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Values cut to what bfloat16 holds, as float32."""
    return (np.asarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def deviations(features: int) -> np.ndarray:
    """Standard deviation of each feature of a made-up store: a few are 8 times as large."""
    return np.where(np.arange(features) < features // 200, 8, 1).astype(np.float32)


NORMS = {"norm_kind": "rms", "norm_epsilon": 1e-5, "norm_weight_offset": 0.0, "norm_rounding": "last"}


def made_up(path: Path, sizes: Sizes, *, raw: bool, deviation: float = 1.0) -> Path:
    """A store of normal values, a few features 8 times as large: with activations, or with peaks alone."""
    rng = np.random.default_rng(0)
    sequences, layers, positions, features = sizes.sequences, sizes.layers, sizes.positions, sizes.features
    create(
        path,
        sizes,
        raw="input" if raw else "none",
        attributes={"model_id": "made up", "compute_dtype": "bfloat16", **NORMS},
        token_id=np.zeros((sequences, positions), np.int32),
        norm_weight=np.ones((layers, len(sizes.sites), features), np.float32),
    )
    scale = deviations(features) * np.float32(deviation)
    fixed = {
        "nonfinite_count": np.zeros((2, layers, len(sizes.sites)), np.int32),
        "nll": np.ones(positions, np.float32),
        "final_high": np.ones(sizes.features, np.float32),
        "final_low": -np.ones(sizes.features, np.float32),
    }
    # The largest of many normal values, for a store without activations: near 3, and never small.
    high = bfloat16(scale * (3.5 + 0.3 * np.abs(rng.standard_normal((2, layers, len(sizes.sites), features)))))
    peak = bfloat16(scale * (2.5 + np.abs(rng.standard_normal((2, positions, features), dtype=np.float32))))
    for n in range(sequences):
        arrays = {**fixed, "layer_high": high, "layer_low": -high, "position_peak": np.roll(peak, n, axis=1)}
        if raw:
            shape = (layers, len(sizes.sites), positions, features)
            x = bfloat16(scale * rng.standard_normal(shape, dtype=np.float32))
            arrays |= {
                "norm_input": x,
                "final_input": x[-1, -1],
                "final_high": x[-1, -1].max(axis=0),
                "final_low": x[-1, -1].min(axis=0),
                "layer_high": np.stack([x.max(axis=2)] * 2),
                "layer_low": np.stack([x.min(axis=2)] * 2),
                "position_peak": np.stack([np.maximum(x.max(axis=(0, 1)), -x.min(axis=(0, 1)))] * 2),
            }
        write.write_sequence(path, n, arrays)
    return path
