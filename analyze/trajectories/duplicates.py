"""Checkpoints that are one and the same: hubs have served one under many names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from analyze.reading.lazy import loaded
from analyze.trajectories.checkpoints import Checkpoint


@dataclass(frozen=True)
class Duplicate:
    """Checkpoints whose norms have the same weights.

    Parameters
    ----------
    steps : theirs, ascending
    revisions : theirs; None where a store does not say
    same_losses : whether every token's loss is known and the same too, so that it is one checkpoint under several names
    """

    steps: tuple[int, ...]
    revisions: tuple[str | None, ...]
    same_losses: bool

    def __str__(self) -> str:
        steps = " and ".join([", ".join(f"{step:,}" for step in self.steps[:-1]), f"{self.steps[-1]:,}"])
        if self.same_losses:
            return f"steps {steps} have the same norm weights and the same losses: one checkpoint under several names"
        return (
            f"steps {steps} have the same norm weights, but other losses or none: make sure which revisions were served"
        )


def duplicates(placed: Sequence[Checkpoint]) -> tuple[Duplicate, ...]:
    """Find checkpoints whose norm weights are equal.

    Parameters
    ----------
    placed : in order

    Notes
    -----
    Norm weights that are all one number tell nothing: those of a norm without weights, and of a model that has hardly
    begun to train. Then only equal losses of every token count.
    """
    alike: dict[str, list[Checkpoint]] = defaultdict(list)
    for one in placed:
        alike[_digest(one.store, "norm_weight", "norm_bias")].append(one)
    found = []
    for group in alike.values():
        by_losses: dict[str | int, list[Checkpoint]] = defaultdict(list)
        for one in group:
            by_losses[_digest(one.store, "nll") if _has_losses(one.store) else one.step].append(one)
        found += [_duplicate(same, True) for same in by_losses.values() if len(same) > 1]
        if len(by_losses) > 1 and not _constant(group[0].store):
            found.append(_duplicate(group, False))
    return tuple(sorted(found, key=lambda one: one.steps))


def _duplicate(group: Sequence[Checkpoint], same_losses: bool) -> Duplicate:
    return Duplicate(tuple(one.step for one in group), tuple(one.revision for one in group), same_losses)


def _has_losses(store: xr.Dataset) -> bool:
    return "nll" in store and bool(np.isfinite(loaded(store["nll"])).any())


def _constant(store: xr.Dataset) -> bool:
    if "norm_weight" not in store:
        return True
    weight = loaded(store["norm_weight"])
    return bool((weight == weight.flat[0]).all())


def _digest(store: xr.Dataset, *names: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        if name in store:
            digest.update(name.encode() + loaded(store[name]).tobytes())
    return digest.hexdigest()
