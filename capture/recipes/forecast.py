"""What a recipe would take, before anything of it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capture.errors import OutliersError
from capture.progress import Reporter
from capture.recipes.recipe import Entry, Recipe
from capture.store.files import check_free_space
from capture.store.write import StoreWriter
from capture.texts.files import text_digest


@dataclass(frozen=True)
class Forecast:
    """What a model of a recipe would take.

    Parameters
    ----------
    name : of the model
    missing_bytes : bytes on disk that are still to be written; None where that cannot be told
    note : what is there already, or why nothing can be told
    failed : whether the model would fail, as far as can be told
    """

    name: str
    missing_bytes: int | None
    note: str
    failed: bool = False


def store_path(out: Path, entry: Entry) -> Path:
    """Where the store of a model is."""
    return out / f"{entry.name}.zarr"


def finished_share(recipe: Recipe, entry: Entry, out: Path) -> float:
    """Share of a model's sequences that are captured already, 0 to 1.

    Raises
    ------
    OutliersError
        Something else is there, or a store of another request.
    """
    path = store_path(out, entry)
    if not os.path.lexists(path):
        return 0.0
    store = StoreWriter(path)
    done = store.done()
    with _beside(recipe):
        digest = text_digest(entry.request.text)
    differences = entry.request.differences(store.attributes, store.sizes, digest)
    if differences:
        raise OutliersError(
            f"{path} was made by another request than {recipe.path} has; it differs in {'; '.join(differences)}; "
            "give the model another name, remove the store, or choose another --out"
        )
    return float(done.mean())


def _beside(recipe: Recipe) -> contextlib.chdir[Path]:
    """Where relative paths begin."""
    return contextlib.chdir(recipe.path.absolute().parent)


def forecast(recipe: Recipe, out: Path, reporter: Reporter, only: Sequence[str] = ()) -> list[Forecast]:
    """Predict what each model would take, from configurations and what is on the disk; nothing runs, no model's code.

    A model's own configuration serves where it can be had, else the one that the recipe names as `config`.
    """
    return [_forecast(recipe, entry, out, reporter) for entry in recipe.chosen(only)]


def _forecast(recipe: Recipe, entry: Entry, out: Path, reporter: Reporter) -> Forecast:
    try:
        share = finished_share(recipe, entry, out)
    except OutliersError as error:
        return Forecast(entry.name, 0, str(error), failed=True)
    if share == 1:
        return Forecast(entry.name, 0, "finished already")
    note = "" if share == 0 else f"{share * 100:.0f}% of the sequences are there"
    try:
        return Forecast(entry.name, round(_estimate(recipe, entry, entry.request.model, reporter) * (1 - share)), note)
    except OutliersError as error:
        if entry.config is None and entry.request.trust_remote_code:
            return Forecast(entry.name, None, "not known before its own code runs, which a forecast never does")
        if entry.config is None:
            return Forecast(entry.name, None, str(error), failed=True)
    try:
        size = _estimate(recipe, entry, entry.config, reporter)
    except OutliersError as error:
        return Forecast(entry.name, None, str(error), failed=True)
    return Forecast(entry.name, round(size * (1 - share)), f"{note}; by {entry.config}".removeprefix("; "))


def _estimate(recipe: Recipe, entry: Entry, model: str, reporter: Reporter) -> int:
    from capture.estimate import estimate

    # A forecast runs no model's code, whatever the recipe asks for.
    other = {} if model == entry.request.model else {"model": model, "revision": None}
    arguments = {**entry.request.arguments(estimate), **other, "trust_remote_code": False}
    with _beside(recipe):
        return estimate(**arguments, reporter=reporter).store_bytes


def check_room(forecasts: Sequence[Forecast], out: Path) -> None:
    """Refuse what the disk has no room for.

    Raises
    ------
    OutliersError
        The file system of `out` has fewer bytes free than the forecasts need together.
    """
    needed = sum(item.missing_bytes or 0 for item in forecasts)
    instead = 'run some of it with --only, or ask for fewer sequences or raw = "none"'
    check_free_space(out / "x", needed, "the recipe", instead)
