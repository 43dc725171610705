"""A recipe carried out: its models captured and analysed one after another, each in a process of its own.

A process that ends gives back all memory of the GPU, and one that is killed for want of memory ends one model and not
the sweep. Whatever is finished is left alone, so that the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from capture.errors import OutliersError
from capture.models.cache import cached_repository, removal_of
from capture.recipes.forecast import finished_share, store_path
from capture.recipes.process import StepError, run_outliers
from capture.recipes.recipe import Entry, Recipe
from capture.store.files import AtomicFile
from capture.store.identity import STORE_ID
from capture.store.output import results_folder
from capture.store.write import StoreWriter

_ABLATED: Final = 4  # sequences of each store, as `outliers ablate` has by default


@dataclass
class Outcome:
    """What became of one model.

    Parameters
    ----------
    name, model : as in the recipe
    store : path of its store
    status : `pending`, `captured` (now), `present` (finished earlier), `failed`, `interrupted`, or `left out` by `only`
    reason : why it failed; None where it did not
    seconds : that the capture took now
    store_bytes : size of the store
    found : count and distinct features of each preset
    """

    name: str
    model: str
    store: str
    status: str = "pending"
    reason: str | None = None
    seconds: float = 0.0
    store_bytes: int = 0
    found: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Results:
    """What became of a recipe.

    Parameters
    ----------
    models : in the recipe's order
    comparison : command, folder and time of the comparison; None where there is none
    comparison_failure : why it failed; None where it did not
    """

    models: list[Outcome]
    comparison: dict[str, Any] | None = None
    comparison_failure: str | None = None

    def failures(self) -> dict[str, str]:
        """Reasons by the name of what failed."""
        failed = {one.name: one.reason for one in self.models if one.status == "failed" and one.reason is not None}
        return failed if self.comparison_failure is None else {**failed, "comparison": self.comparison_failure}


def run_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    keep_going: bool = True,
    clean_cache: bool = False,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Results:
    """Capture and analyse the models of a recipe one after another.

    Stores are `OUT/NAME.zarr`, what is found in them `OUT/found/NAME.PRESET.json`, the comparison `OUT/comparison`,
    what the commands said `OUT/logs/NAME.txt`, and the outcomes so far `OUT/results.json`.

    Parameters
    ----------
    recipe : the models
    out : folder for everything; made where it is missing
    only : names of the models to carry out; all where empty. The comparison takes whatever is finished
    keep_going : go on with the next model after one that failed
    clean_cache : once a model's store is finished and verified, remove the model from the cache of the hub
    trust_remote_code : permit the code of those models of which the recipe says that it has to run
    tell : takes each line of progress

    Returns
    -------
    what became of each model and of the comparison; failures are in there and raise nothing

    Raises
    ------
    OutliersError
        `only` names no model of the recipe, a model's code would have to run without permission, or `out` can be no
        folder of results.
    KeyboardInterrupt
        As everywhere; what is finished is safe, and `results.json` says so.
    """
    check_permission(recipe, only, trust_remote_code)
    chosen = frozenset(entry.name for entry in recipe.chosen(only))
    return _Campaign(recipe, results_folder(out).absolute(), clean_cache, tell).run(chosen, keep_going)


def check_permission(recipe: Recipe, only: Sequence[str], trust_remote_code: bool) -> None:
    """Refuse a recipe that asks for the code of models to be run, where the user has not allowed it.

    Raises
    ------
    OutliersError
        It does.
    """
    asking = [entry.name for entry in recipe.chosen(only) if entry.request.trust_remote_code]
    if asking and not trust_remote_code:
        raise OutliersError(
            f"{recipe.path} asks to run the code that {', '.join(asking)} bring{'s' * (len(asking) == 1)} along, and a "
            "recipe cannot allow that; read the code, then pass --trust-remote-code, or name the others by --only"
        )


class _Campaign:
    def __init__(self, recipe: Recipe, out: Path, clean_cache: bool, tell: Callable[[str], None]) -> None:
        self._recipe, self._out, self._clean_cache, self._tell = recipe, out, clean_cache, tell
        self._folder = recipe.path.absolute().parent
        self._outcomes = [
            Outcome(entry.name, entry.request.model, str(store_path(out, entry))) for entry in recipe.entries
        ]
        self._results = Results(self._outcomes, _earlier_comparison(out))
        for folder in (out, out / "logs", out / "found"):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, chosen: frozenset[str], keep_going: bool) -> Results:
        for entry, outcome in zip(self._recipe.entries, self._outcomes, strict=True):
            outcome.status = "pending" if entry.name in chosen else "left out"
        for number, (entry, outcome) in enumerate(zip(self._recipe.entries, self._outcomes, strict=True), 1):
            if entry.name not in chosen:
                continue
            self._tell(f"[{number}/{len(self._outcomes)}] {entry.name}: {entry.request.model}")
            try:
                self._model(number, entry, outcome)
            except KeyboardInterrupt:
                outcome.status = "interrupted"
                raise
            except (StepError, OutliersError) as error:
                outcome.status, outcome.reason = "failed", str(error)
                self._tell(f"{entry.name} failed: {error}")
            finally:
                self._record()
            if outcome.status == "failed" and not keep_going:
                return self._results
        if self._recipe.analysis.compare:
            self._compare()
        return self._results

    def _model(self, number: int, entry: Entry, outcome: Outcome) -> None:
        store = store_path(self._out, entry)
        status = "present"
        with (self._out / "logs" / f"{entry.name}.txt").open("a", encoding="utf-8") as log:
            if finished_share(self._recipe, entry, self._out) < 1:
                began = time.monotonic()
                words = ["capture", entry.request.model, "--out", str(store), *entry.request.to_words()]
                self._outliers(words, log)
                outcome.seconds = round(time.monotonic() - began, 1)
                status = "captured"
            outcome.store_bytes = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
            for preset in self._recipe.analysis.presets:
                found = self._answer(entry, f"{preset}.json", ["find", str(store), "--preset", preset], log)
                outcome.found[preset] = {name: found[name] for name in ("count", "distinct_features")}
                if self._recipe.analysis.ablate:
                    self._ablate(entry, preset, found, log)
            if self._clean_cache:
                self._clean(number, entry, store, log)
        outcome.status = status

    def _answer(self, entry: Entry, name: str, words: list[str], log: IO[str]) -> dict[str, Any]:
        """The JSON object that a command prints, from a file of this very store and younger where there is one."""
        store, target = store_path(self._out, entry), self._out / "found" / f"{entry.name}.{name}"
        fresh = target.exists() and target.stat().st_mtime >= _captured(store)
        if not fresh or _json(target).get(STORE_ID) != StoreWriter(store).store_id:
            partial = target.with_suffix(".partial")
            with partial.open("w", encoding="utf-8") as output:
                self._outliers([*words, "--json"], log, output)
            partial.replace(target)
        return _json(target)

    def _ablate(self, entry: Entry, preset: str, found: dict[str, Any], log: IO[str]) -> None:
        """Take the outliers away, where there are some and as many others for the control."""
        if not found["count"] or found["saturated"]:
            self._tell(f"  {entry.name}: {found['distinct_features']} outlier features under {preset}, none to ablate")
            return
        store = store_path(self._out, entry)
        sequences = min(_ABLATED, StoreWriter(store).sizes.sequences)
        words = ["ablate", str(store), "--preset", preset, "--sequences", str(sequences)]
        words += entry.request.to_words("batch_size", "device", "trust_remote_code")
        self._answer(entry, f"{preset}.ablation.json", words, log)

    def _clean(self, number: int, entry: Entry, store: Path, log: IO[str]) -> None:
        """Remove the model from the hub's cache, but for the revisions that later ones of the recipe may need."""
        repository = cached_repository(entry.request.model, self._folder)
        later = {
            other.request.revision
            for other in self._recipe.entries[number:]
            if cached_repository(other.request.model, self._folder) == repository
        }
        if repository is None or entry.request.revision in later:
            return
        # A store that does not say which commit it is of leaves all of them to the later ones.
        commit = str(StoreWriter(store).attributes.get("model_revision")) if later else None
        removal = removal_of(repository, commit)
        if removal is None:
            return
        self._outliers(["verify", str(store)], log)
        removal.execute()
        freed = removal.expected_freed_size
        self._tell(f"{entry.name}: {freed / 1e9:,.2f} GB of {repository} removed from the hub's cache")

    def _compare(self) -> None:
        """Compare all finished stores, unless that was done since the last of them changed."""
        stores = [
            store_path(self._out, entry)
            for entry, outcome in zip(self._recipe.entries, self._outcomes, strict=True)
            if outcome.status in ("captured", "present") or (outcome.status == "left out" and self._finished(entry))
        ]
        if not stores:
            return
        folder = self._out / "comparison"
        words = ["compare", *map(str, stores), *(["--published"] if self._recipe.analysis.published else [])]
        made = self._results.comparison
        changed, identities = max(map(_changed, stores)), [StoreWriter(store).store_id for store in stores]
        same = made and made["command"] == shlex.join(words) and made.get("stores") == identities
        if made and same and made["began"] > changed and folder.is_dir():
            return
        self._results.comparison = None
        self._tell(f"comparing {len(stores)} stores")
        began = time.time()
        with (self._out / "logs" / "comparison.txt").open("a", encoding="utf-8") as log:
            try:
                self._outliers([*words, "--out", str(folder)], log)
                self._results.comparison = {
                    "command": shlex.join(words),
                    "folder": str(folder),
                    "began": began,
                    "stores": identities,
                }
            except StepError as error:
                self._results.comparison_failure = str(error)
        self._record()

    def _finished(self, entry: Entry) -> bool:
        try:
            return finished_share(self._recipe, entry, self._out) == 1
        except OutliersError:
            return False

    def _record(self) -> None:
        """Write what became of the models so far."""
        results = {
            "recipe": str(self._recipe.path.absolute()),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            **asdict(self._results),
        }
        with AtomicFile(self._out / "results.json") as output:
            output.write(json.dumps(results, indent=1).encode())

    def _outliers(self, words: Sequence[str], log: IO[str], output: IO[str] | None = None) -> None:
        run_outliers(words, self._folder, log, self._tell, output)


def _json(file: Path) -> dict[str, Any]:
    """The object that a command printed into a file."""
    try:
        answer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StepError(f"{file} is no JSON file ({error}); remove it, and it is made again") from error
    return answer


def _captured(store: Path) -> float:
    """When a store last got a sequence, seconds since the epoch."""
    return max(file.stat().st_mtime for file in (store / "done").rglob("*"))


def _changed(store: Path) -> float:
    """When a store last got a sequence or the result of an ablation."""
    return max([_captured(store), *(file.stat().st_mtime for file in (store / "ablation").glob("*.json"))])


def _earlier_comparison(out: Path) -> dict[str, Any] | None:
    """The comparison that an earlier command recorded; None where there is none that can be read."""
    try:
        made: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))["comparison"]
        return made if isinstance(made["command"], str) and isinstance(made["began"], float) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
