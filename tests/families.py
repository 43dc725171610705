"""Synthetic families of stores: models of the sizes of OPT whose outliers step, trend or do neither."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import builders

SIZES = {
    "125M": 125e6, "350M": 331e6, "1.3B": 1.316e9, "2.7B": 2.65e9, "6.7B": 6.7e9, "13B": 12.85e9, "30B": 29.97e9,
    "66B": 65.7e9,
}  # fmt: skip
LAYERS, POSITIONS, FEATURES = 10, 20, 12
UNITS = 2 * LAYERS


def activations(units: int, positions: int, magnitude: float = 12, seed: int = 0) -> np.ndarray:
    """One sequence in which features 0 and 1 reach `magnitude` in so many of 20 units and at so many positions."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-0.5, 0.5, (1, LAYERS, 2, POSITIONS, FEATURES)).astype(np.float32)
    for unit in range(units):
        # Each unit at one of the positions, so that both shares come out as asked for.
        x[:, unit // 2, unit % 2, unit % positions, :2] = magnitude
    x[:, 0, 0, :positions, :2] = magnitude
    return x


def family(
    layer_share: Callable[[float], float],
    folder: Path | None = None,
    *,
    sizes: dict[str, float] = SIZES,
    **attributes: object,
) -> list[Any]:
    """Stores, on disk or in memory; the share of units with a hit is a function of log10(parameters)."""
    stores: list[Any] = []
    for number, (name, size) in enumerate(sizes.items()):
        u = float(np.log10(size))
        x = activations(round(layer_share(u) * UNITS), POSITIONS // 2, seed=number)
        nll = np.full((1, POSITIONS), 30 / u, np.float32)  # the larger, the better
        facts = {"model_id": f"planted/{name}", "total_parameters": int(size), "active_parameters": int(size / 4)}
        facts |= attributes
        if folder is None:
            stores.append(builders.dataset(x, x).assign_attrs(facts))
            stores[-1]["nll"] = (("sequence", "position"), nll)
        else:
            stores.append(builders.on_disk(folder / f"{name}.zarr", x, x, nll=nll, raw="none", attributes=facts))
    return stores


def training(folder: Path) -> list[Path]:
    """Checkpoints of one run, on disk; features 0 and 1 begin to reach 12 with the third of them."""
    return [
        builders.on_disk(
            folder / f"{steps}.zarr",
            activations(LAYERS, POSITIONS // 2, magnitude=12 if steps >= 1000 else 1, seed=steps),
            raw="none",
            attributes={"model_id": "planted/run", "model_revision": f"step{steps}-tokens{steps / 100:g}B"},
        )
        for steps in (0, 100, 1000, 5000)
    ]


def step(u: float) -> float:
    """30% of layers below 6.7B and 90% from there on."""
    return 0.9 if u >= np.log10(6.7e9) - 1e-9 else 0.3


def smooth(u: float) -> float:
    """30% to 95%, a line in log10(parameters)."""
    return 0.3 + 0.65 * (u - np.log10(125e6)) / np.log10(65.7e9 / 125e6)


def flat(u: float) -> float:
    """About 50%, up and down."""
    return 0.5 + 0.05 * np.sin(40 * u)
