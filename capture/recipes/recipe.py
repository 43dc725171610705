"""Recipes: TOML files that list the models of a sweep and how to capture them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture.errors import OutliersError, brief, one_line
from capture.models.random_weights import PREFIX
from capture.request import DEFAULTS, OPTIONS, Option, Request
from capture.store.paths import user_path

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_DEFAULTS: Final = {name: OPTIONS[name] for name in DEFAULTS}
_OWN: Final = {"model": OPTIONS["model"], "name": Option(str), "config": Option(str), "revisions": Option(list)}
_MODEL: Final = {**_OWN, **_DEFAULTS}
_ANALYSIS: Final = {"presets": Option(list), **dict.fromkeys(("compare", "published", "ablate"), Option(bool))}


@dataclass(frozen=True)
class Entry:
    """One model of a recipe.

    Parameters
    ----------
    name : of its store, unique in the recipe
    request : what is asked of it, the defaults of the recipe included; relative paths begin at the recipe's folder
    config : configuration to estimate from where the model's own cannot be had; never used to load anything
    """

    name: str
    request: Request
    config: str | None = None


@dataclass(frozen=True)
class Analysis:
    """What is asked of the stores.

    Parameters
    ----------
    presets : conventions under which the outliers of each store are found
    compare : whether all finished stores are compared
    published : whether the comparison lays the published numbers beside them
    ablate : whether the outliers of each store are ablated, which loads its model again
    """

    presets: tuple[str, ...] = ("study", "dettmers")
    compare: bool = True
    published: bool = True
    ablate: bool = False


@dataclass(frozen=True)
class Recipe:
    """A list of models to capture and to analyse.

    Parameters
    ----------
    path : the file
    entries : the models, in their order
    analysis : what is asked of the stores
    """

    path: Path
    entries: tuple[Entry, ...]
    analysis: Analysis

    def chosen(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The models of those names, in the recipe's order; all where there are none.

        Raises
        ------
        OutliersError
            A name is not in the recipe.
        """
        known = [entry.name for entry in self.entries]
        for name in names:
            if name not in known:
                raise OutliersError(f"--only {name} names no model of {self.path}; expected some of {', '.join(known)}")
        return tuple(entry for entry in self.entries if not names or entry.name in names)


def read_recipe(path: Path | str) -> Recipe:
    """Read a recipe and check all of it.

    Parameters
    ----------
    path : a TOML file with `[[models]]`, and with `[defaults]` and `[analysis]` where they are wanted

    Raises
    ------
    OutliersError
        The file cannot be read, or something in it is unknown, missing, of the wrong type or out of range.
    """
    path = user_path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise OutliersError(f"no recipe at {path}; check the path") from error
    except OSError as error:
        raise OutliersError(f"{path} cannot be read ({error.strerror}); expected a TOML file") from error
    except (ValueError, RecursionError) as error:  # Python's own for numbers and lists without end
        raise OutliersError(f"{path} is no TOML file ({one_line(error)}); mend it there") from error
    _check_keys(document, ("defaults", "analysis", "models"), f"{path}:")
    defaults = _table(document.get("defaults", {}), _DEFAULTS, f"{path}: [defaults]")
    analysis = _analysis(document.get("analysis", {}), f"{path}: [analysis]")
    models = document.get("models")
    if not isinstance(models, list) or not models:
        raise OutliersError(f"{path}: no [[models]]; expected one such table for each model, with a key model")
    entries: dict[str, tuple[int, Entry]] = {}
    for number, table in enumerate(models, 1):
        where = f"{path}: [[models]] number {number}"
        for values in _by_revision(_table(table, _MODEL, where), where):
            entry = _entry(values, defaults, where)
            same, _ = entries.setdefault(entry.name.lower(), (number, entry))  # file systems may not tell A from a
            if entries[entry.name.lower()][1] is not entry:
                raise OutliersError(
                    f"{where}: the name {entry.name!r} is that of number {same} too; "
                    "expected different ones; give one of the two a key name"
                )
    return Recipe(path, tuple(entry for _, entry in entries.values()), analysis)


def _by_revision(values: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """A table for each of the revisions that it lists; itself where it lists none."""
    if "revisions" not in values:
        return [values]
    revisions = values["revisions"]
    for one in revisions:
        flaw = OPTIONS["revision"].flaw(one)
        if flaw is not None:
            raise OutliersError(f"{where}: revisions has {brief(one, 60)}{flaw}")
    if not revisions or "revision" in values or len(set(revisions)) != len(revisions):
        raise OutliersError(
            f"{where}: revisions = {brief(revisions, 60)}; expected each of one or more once, and no key revision "
            "beside it"
        )
    tables = [{**values, "revision": one} for one in revisions]
    for table in tables:
        if "name" in table:
            table["name"] += f"-{_in_name(table['revision'])}"
    return tables


def _entry(values: dict[str, Any], defaults: Mapping[str, Any], where: str) -> Entry:
    if "model" not in values:
        raise OutliersError(f"{where}: the key model is missing; expected what outliers capture takes as MODEL")
    model = values["model"]
    if model.startswith("-"):
        raise OutliersError(f"{where}: model = {model!r} looks like an option; expected what outliers capture takes")
    name = values.get("name", _name_of(model, values.get("revision")))
    if not _NAME.fullmatch(name):
        raise OutliersError(
            f"{where}: name = {name!r} cannot name a store; expected letters, digits, '.', '_' and '-', "
            "a letter or digit first"
        )
    return Entry(name, Request.among({**defaults, **values}), values.get("config"))


def _name_of(model: str, revision: str | None) -> str:
    """Name that a model's store has by default: the last part of its id or path in small letters, and its revision."""
    last = model.removeprefix(PREFIX).rstrip("/").rpartition("/")[2]
    name = last.lower().removesuffix(".json").removesuffix(".gguf")
    return name if revision is None else f"{name}-{_in_name(revision)}"


def _in_name(revision: str) -> str:
    return revision.replace("/", "-")


def _analysis(table: Any, where: str) -> Analysis:
    from analyze.question.criteria import PRESETS

    values = _table(table, _ANALYSIS, where)
    presets = values.get("presets", list(Analysis.presets))
    for preset in presets:
        if preset not in tuple(PRESETS):
            raise OutliersError(f"{where}: presets has {preset!r}; expected some of {', '.join(PRESETS)}")
    if len(set(presets)) != len(presets):
        raise OutliersError(f"{where}: presets has one of them twice; expected each once")
    if values.get("ablate") and not presets:
        raise OutliersError(f"{where}: ablate = true, and presets is empty; expected a preset whose outliers to ablate")
    return Analysis(**{**values, "presets": tuple(presets)})


def _table(table: Any, known: Mapping[str, Option], where: str) -> dict[str, Any]:
    """The values of a table, each of the expected type and range."""
    if not isinstance(table, dict):
        raise OutliersError(f"{where}: expected a table, and it is {brief(table, 60)}")
    _check_keys(table, tuple(known), f"{where}:")
    for key, value in table.items():
        flaw = known[key].flaw(value)
        if flaw is not None:
            raise OutliersError(f"{where}: {key} = {brief(value, 60)}{flaw}")
    return table


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise OutliersError(f"{where} the key {key!r} is not known; expected one of {', '.join(known)}")
