"""What a recipe would take, before anything of it runs."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capture.errors import OutliersError
from capture.progress import Reporter
from capture.recipes.recipe import TRUST, Entry, Recipe
from capture.store.write import StoreWriter


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
    asked = {**_defaults(), **entry.options, "model": entry.model}
    had = {
        "model": store.attributes.get("model_id"),
        "text": _text(recipe, asked["text"], store.attributes),
        "sequences": store.sizes.sequences,
        "length": store.sizes.positions,
        "dtype": store.attributes.get("compute_dtype"),
        "raw": store.raw,
        "compression": store.compression,
        "bos": store.attributes.get("bos"),
    }
    differences = [
        f"{key} ({value} in the store, {asked[key]} in the recipe)"
        for key, value in had.items()
        if asked[key] not in (value, "auto", None)
    ]
    if differences:
        raise OutliersError(
            f"{path} was made by another request than {recipe.path} has; it differs in {'; '.join(differences)}; "
            "give the model another name, remove the store, or choose another --out"
        )
    return float(done.mean())


def _text(recipe: Recipe, asked: str, attributes: Mapping[str, Any]) -> Any:
    """The text of a store, as it is asked for where a file has the same content."""
    source, digest = attributes.get("text_source"), attributes.get("text_sha256")
    file = recipe.path.absolute().parent / asked
    if digest is None or attributes.get("text_revision") is not None or not file.is_file():
        return source
    with file.open("rb") as content:
        same = hashlib.file_digest(content, "sha256").hexdigest() == digest
    return asked if same else f"{source} of other content"


def _defaults() -> dict[str, Any]:
    from capture.run import capture

    return {name: parameter.default for name, parameter in inspect.signature(capture).parameters.items()}


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
        return Forecast(entry.name, round(_estimate(recipe, entry, entry.model, reporter) * (1 - share)), note)
    except OutliersError as error:
        if entry.config is None and entry.options.get(TRUST):
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

    known = inspect.signature(estimate).parameters
    options = {key: value for key, value in entry.options.items() if key in known and key != TRUST}
    with contextlib.chdir(recipe.path.absolute().parent):
        return estimate(model, **options, reporter=reporter).store_bytes


def check_room(forecasts: Sequence[Forecast], out: Path) -> None:
    """Refuse what the disk has no room for, and a place that can be no folder of a recipe.

    Raises
    ------
    OutliersError
        The file system of `out` has fewer bytes free than the forecasts need together, or `out` is a file or a store.
    """
    needed = sum(item.missing_bytes or 0 for item in forecasts)
    folder = next(parent for parent in (out.absolute() / "x").parents if parent.exists())
    if not folder.is_dir():
        raise OutliersError(f"{folder} is no folder; choose another --out")
    if (out / "zarr.json").exists():
        raise OutliersError(f"{out} is a store; choose another folder for --out")
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutliersError(
            f"the recipe needs about {needed / 1e9:,.2f} GB and the disk of {out} has {free / 1e9:,.2f} GB free; "
            'free some room, run some of it with --only, or ask for fewer sequences or raw = "none"'
        )
