"""Stores of one training run, put in order and lined up as one lazy Dataset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.comparison.compare import known_text, opened
from analyze.question.checks import whole
from analyze.reading.lazy import loaded
from analyze.trajectories.names import checkpoint_name
from analyze.types import Store
from capture.errors import OutliersError, brief
from capture.store.schema import SITE

STEP: Final = "step"
BY: Final = ("step", "tokens")
LEAST: Final = 2

_REVISIONS: Final = ("model_revision_name", "model_revision")  # as it was asked for, and the commit that it was
_FACTS: Final = ("architecture", "compute_dtype", "weight_quantisation", "bos")
_MOST: Final = 2**53  # whole numbers up to here are exact on any axis


@dataclass(frozen=True)
class Checkpoint:
    """A store and its place in the training.

    Parameters
    ----------
    name : of the store, for a reader
    step : of the training
    tokens : seen so far; None where nothing says so
    revision : of the model, by the name that was asked for, else the commit; None where the store does not say
    run : the model, and what else its revision's name says beside step and tokens
    store : the open store
    """

    name: str
    step: int
    tokens: int | None
    revision: str | None
    run: str
    store: xr.Dataset = field(repr=False)


def checkpoints(
    stores: Sequence[Store],
    by: str = STEP,
    *,
    steps: Sequence[int] | None = None,
    tokens_per_step: float | None = None,
) -> list[Checkpoint]:
    """Open the stores of one training run and put them in order.

    Parameters
    ----------
    stores : paths or Datasets, two or more
    by : `step` or `tokens`; tokens must then be known of every store
    steps : of the stores, in their order; what their names say where None
    tokens_per_step : tokens of a batch; what the names say where None

    Raises
    ------
    OutliersError
        Too few stores; one whose step or tokens nothing tells; two at the same step; stores of different models, runs,
        dtypes or texts.
    """
    found = opened(stores)
    if len(found) < LEAST:
        raise OutliersError(
            f"{len(found)} store{'' if len(found) == 1 else 's'}; expected {LEAST} or more checkpoints of one training "
            "run: capture more of them, with --revision"
        )
    if steps is not None and len(steps) != len(found):
        raise OutliersError(f"steps has {len(steps)} numbers for {len(found)} stores; expected one for each, in order")
    if tokens_per_step is not None and not 0 < tokens_per_step < math.inf:
        raise OutliersError(f"tokens-per-step is {tokens_per_step!r}; expected a number above 0")
    placed = [
        _placed(name, store, None if steps is None else steps[number]) for number, (name, store) in enumerate(found)
    ]
    if tokens_per_step is not None:
        placed = [replace(one, tokens=round(one.step * tokens_per_step)) for one in placed]
    _check_alike(placed)
    _check_places(placed, by)
    return sorted(placed, key=lambda one: one.step)


def _placed(name: str, store: xr.Dataset, given: int | None) -> Checkpoint:
    """A store's place; where its step is given, its name says no more than which model it is of."""
    names = [known_text(store.attrs.get(attribute)) for attribute in _REVISIONS]
    revision, model = next((name for name in names if name is not None), None), known_text(store.attrs.get("model_id"))
    parsed = next((found for name in names if name is not None and (found := checkpoint_name(name))), None)
    run = model or ""
    if parsed is not None:
        run = f"{run}@{parsed.run}" if parsed.run and given is None else run
    elif model is not None:
        # A folder of checkpoints: what the model itself is called is the name of a step.
        folder, slash, last = model.rstrip("/").rpartition("/")
        parsed = checkpoint_name(last)
        run = model if parsed is None else f"{folder}{slash}{parsed.run}"
    if given is not None:
        step = whole("steps", given)
        if not 0 <= step <= _MOST:
            raise OutliersError(f"steps has {step}; expected whole numbers from 0 to {_MOST}")
    elif parsed is not None:
        step = parsed.step
    else:
        said = ", ".join(repr(text) for text in (revision, model) if text is not None) or "neither revision nor model"
        raise OutliersError(
            f"{name} does not say of which step it is ({said}); expected a revision such as step1000, or the steps "
            "of all stores with --steps"
        )
    return Checkpoint(name, step, None if parsed is None else parsed.tokens, revision, run, store)


def _check_alike(placed: Sequence[Checkpoint]) -> None:
    """Refuse what is no checkpoint of the first store's run, or was captured otherwise."""
    first = placed[0]
    tokens = loaded(first.store["token_id"])
    for other in placed[1:]:
        pairs: dict[str, tuple[Any, Any]] = {"model": (first.run, other.run)}
        pairs |= {name: (first.store.attrs.get(name), other.store.attrs.get(name)) for name in _FACTS}
        pairs |= {
            f"number of {dim}s": (first.store.sizes[dim], other.store.sizes.get(dim)) for dim in first.store.sizes
        }
        pairs["sites"] = (_sites(first.store), _sites(other.store))
        differences = [f"{name} ({brief(a)} and {brief(b)})" for name, (a, b) in pairs.items() if a != b]
        if not differences and not np.array_equal(tokens, loaded(other.store["token_id"])):
            differences = ["text (other tokens)"]
        if differences:
            raise OutliersError(
                f"{first.name} and {other.name} differ in {'; '.join(differences)}; expected checkpoints of one "
                "training run, captured alike: leave one out, or capture it again as the other"
            )


def _check_places(placed: Sequence[Checkpoint], by: str) -> None:
    seen: dict[int, str] = {}
    for one in placed:
        if one.step in seen:
            raise OutliersError(
                f"{seen[one.step]} and {one.name} are both of step {one.step}; expected each step once: leave one out"
            )
        seen[one.step] = one.name
        if by == "tokens" and one.tokens is None:
            raise OutliersError(
                f"{one.name} does not say how many tokens its model had seen; expected a revision such as "
                "step1000-tokens4B, or --tokens-per-step"
            )


def _sites(store: xr.Dataset) -> str:
    return ", ".join(map(str, store[SITE].values))


def lined_up(placed: Sequence[Checkpoint]) -> xr.Dataset:
    """One Dataset of all checkpoints along `step`, as lazy as they are: nothing is read and nothing copied.

    Parameters
    ----------
    placed : from `checkpoints`

    Returns
    -------
    Dataset of the variables that every store has, each with `step` in front of its own dimensions; coordinates `step`
    (int64), `tokens` (float64, NaN where unknown) and `revision`; attributes that all stores share
    """
    names = [name for name in placed[0].store.data_vars if all(name in one.store for one in placed)]
    places = xr.DataArray(
        [one.step for one in placed],
        coords={
            "tokens": (STEP, [math.nan if one.tokens is None else float(one.tokens) for one in placed]),
            "revision": (STEP, [one.revision or "" for one in placed]),
        },
        dims=STEP,
        name=STEP,
    )
    result = xr.concat(
        [one.store[names] for one in placed],
        dim=STEP,
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop_conflicts",
    )
    return result.assign_coords({STEP: places, **{name: places[name] for name in ("tokens", "revision")}})
