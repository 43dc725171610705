"""A recipe carried out: its models captured and analysed one after another, each in a process of its own.

A process that ends gives back all memory of the GPU, and one that is killed for want of memory ends one model and not
the sweep. Whatever is finished is left alone, so that the same command goes on where an earlier one stopped.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

from capture.hub_cache import cached_repository, remove_repository
from capture.progress import Reporter
from capture.recipe import Entry, Recipe
from capture.schema import OutliersError
from capture.shards import AtomicFile
from capture.store import StoreWriter

# A recipe's folder is the working directory, and nothing in it must be imported: -P keeps it off the path.
_OUTLIERS: Final = (
    *(sys.executable, "-P", "-c"),
    "import sys, analyze.cli; sys.argv[0] = 'outliers'; sys.exit(analyze.cli.main())",
)
_GRACE: Final = 30.0  # seconds that a process has to end by itself after an interruption
_COMPLAINT: Final = "outliers: "
_ABLATED: Final = 4  # sequences of each store, as `outliers ablate` has by default


class StepError(Exception):
    """A step that did not succeed, told in one line."""


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
        failed = {outcome.name: outcome.reason for outcome in self.models if outcome.status == "failed"}
        return {name: reason for name, reason in {**failed, "comparison": self.comparison_failure}.items() if reason}


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
    asked = {**_defaults(), **entry.options}
    had = {
        "model": store.attributes.get("model_id"),
        "text": store.attributes.get("text_source"),
        "sequences": store.sizes.sequences,
        "length": store.sizes.positions,
        "dtype": store.attributes.get("compute_dtype"),
        "raw": store.raw,
        "compression": store.compression,
        "bos": store.attributes.get("bos"),
    }
    asked = {**asked, "model": entry.model}
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


def forecast(recipe: Recipe, out: Path, reporter: Reporter, only: Sequence[str] = ()) -> list[Forecast]:
    """Predict what each model would take, from configurations and what is on the disk; nothing runs.

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
    options = {key: value for key, value in entry.options.items() if key in known}
    with contextlib.chdir(recipe.path.absolute().parent):
        return estimate(model, **options, reporter=reporter).store_bytes


def check_room(forecasts: Sequence[Forecast], out: Path) -> None:
    """Refuse what the disk has no room for.

    Raises
    ------
    OutliersError
        The file system of `out` has fewer bytes free than the forecasts need together.
    """
    needed = sum(item.missing_bytes or 0 for item in forecasts)
    folder = next(parent for parent in (out.absolute() / "x").parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutliersError(
            f"the recipe needs about {needed / 1e9:,.2f} GB and the disk of {out} has {free / 1e9:,.2f} GB free; "
            'free some room, run some of it with --only, or ask for fewer sequences or raw = "none"'
        )


def run_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    keep_going: bool = True,
    clean_cache: bool = False,
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
    tell : takes each line of progress

    Returns
    -------
    what became of each model and of the comparison; failures are in there and raise nothing

    Raises
    ------
    OutliersError
        `only` names no model of the recipe.
    KeyboardInterrupt
        As everywhere; what is finished is safe, and `results.json` says so.
    """
    chosen = frozenset(entry.name for entry in recipe.chosen(only))
    return _Campaign(recipe, Path(out).absolute(), clean_cache, tell).run(chosen, keep_going)


class _Campaign:
    def __init__(self, recipe: Recipe, out: Path, clean_cache: bool, tell: Callable[[str], None]) -> None:
        self._recipe, self._out, self._clean_cache, self._tell = recipe, out, clean_cache, tell
        self._folder = recipe.path.absolute().parent
        self._outcomes = [Outcome(entry.name, entry.model, str(store_path(out, entry))) for entry in recipe.entries]
        self._results = Results(self._outcomes, _read_results(out).get("comparison"))
        for folder in (out, out / "logs", out / "found"):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self, chosen: frozenset[str], keep_going: bool) -> Results:
        for entry, outcome in zip(self._recipe.entries, self._outcomes, strict=True):
            outcome.status = "pending" if entry.name in chosen else "left out"
        for number, (entry, outcome) in enumerate(zip(self._recipe.entries, self._outcomes, strict=True), 1):
            if entry.name not in chosen:
                continue
            self._tell(f"[{number}/{len(self._outcomes)}] {entry.name}: {entry.model}")
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
                self._outliers(["capture", entry.model, "--out", str(store), *_words(entry.options)], log)
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
        """The JSON object that a command prints, from a file younger than the store where there is one."""
        target = self._out / "found" / f"{entry.name}.{name}"
        if not target.exists() or target.stat().st_mtime < _captured(store_path(self._out, entry)):
            partial = target.with_suffix(".partial")
            with partial.open("w", encoding="utf-8") as output:
                self._outliers([*words, "--json"], log, output)
            partial.replace(target)
        answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return answer

    def _ablate(self, entry: Entry, preset: str, found: dict[str, Any], log: IO[str]) -> None:
        """Take the outliers away, where there are some and as many others for the control."""
        if not found["count"] or found["saturated"]:
            self._tell(f"  {entry.name}: {found['distinct_features']} outlier features under {preset}, none to ablate")
            return
        store = store_path(self._out, entry)
        sequences = min(_ABLATED, StoreWriter(store).sizes.sequences)
        words = ["ablate", str(store), "--preset", preset, "--sequences", str(sequences)]
        same = {
            key: entry.options[key] for key in ("batch_size", "device", "trust_remote_code") if key in entry.options
        }
        self._answer(entry, f"{preset}.ablation.json", [*words, *_words(same)], log)

    def _clean(self, number: int, entry: Entry, store: Path, log: IO[str]) -> None:
        """Remove the model from the hub's cache, unless a later one of the recipe needs it too."""
        repository = cached_repository(entry.model, self._folder)
        later = {cached_repository(other.model, self._folder) for other in self._recipe.entries[number:]}
        if repository is None or repository in later:
            return
        self._outliers(["verify", str(store)], log)
        freed = remove_repository(repository)
        if freed:
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
        changed = max(map(_changed, stores))
        if made and made["command"] == shlex.join(words) and made["began"] > changed and folder.is_dir():
            return
        self._results.comparison = None
        self._tell(f"comparing {len(stores)} stores")
        began = time.time()
        with (self._out / "logs" / "comparison.txt").open("a", encoding="utf-8") as log:
            try:
                self._outliers([*words, "--out", str(folder)], log)
                self._results.comparison = {"command": shlex.join(words), "folder": str(folder), "began": began}
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

    def _outliers(self, words: list[str], log: IO[str], output: IO[str] | None = None) -> None:
        """Run one command in the recipe's folder; what it says goes to the log and to the user.

        Raises
        ------
        StepError
            It did not succeed.
        """
        log.write(f"$ {shlex.join(['outliers', *words])}\n")
        log.flush()
        last = complaint = ""
        process = subprocess.Popen(
            [*_OUTLIERS, *words],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.STDOUT if output is None else subprocess.PIPE,
            text=True,
            errors="replace",
        )
        with _interruptible(process):
            said = process.stdout if output is None else process.stderr
            assert said is not None
            for line in filter(str.strip, said):
                log.write(line)
                if complaint:
                    self._tell(f"  {complaint}")
                last = line.rstrip()
                # The last one is the reason of a failure, and told as that.
                complaint = last if last.startswith(_COMPLAINT) else ""
                if not complaint:
                    self._tell(f"  {last}")
            code = process.wait()
        log.flush()
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code:
            raise StepError(_reason(words[0], code, last.removeprefix(_COMPLAINT)))


@contextlib.contextmanager
def _interruptible(process: subprocess.Popen[str]) -> Iterator[None]:
    """Wait for a process; where this one is interrupted, do not leave it behind."""
    with process:
        try:
            yield
        except BaseException:
            # Ctrl-C on a terminal reached it too: let it end in its own way, then ask, then insist.
            for number, grace in ((None, _GRACE / 6), (signal.SIGINT, _GRACE), (signal.SIGKILL, None)):
                if number is not None:
                    process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=grace)
                    break
            raise


def _reason(step: str, code: int, said: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        why = ", most likely for want of memory" if code == -signal.SIGKILL else ""
        return f"{step} was ended by {name}{why}"
    if code == 2:
        return said
    return f"{step} broke with exit code {code}: {said}; this is a bug, please report it with the log"


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options on the command line."""
    words = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        if key == "bos":
            words.append("--bos" if value else "--no-bos")
        elif isinstance(value, bool):
            words += [f"--{flag}"] if value else []
        else:
            words += [f"--{flag}", str(value)]
    return words


def _defaults() -> dict[str, Any]:
    from capture.run import capture

    return {name: parameter.default for name, parameter in inspect.signature(capture).parameters.items()}


def _captured(store: Path) -> float:
    """When a store last got a sequence, seconds since the epoch."""
    return max(file.stat().st_mtime for file in (store / "done").rglob("*"))


def _changed(store: Path) -> float:
    """When a store last got a sequence or the result of an ablation."""
    return max([_captured(store), *(file.stat().st_mtime for file in (store / "ablation").glob("*.json"))])


def _read_results(out: Path) -> dict[str, Any]:
    """What an earlier command recorded; nothing where there is none that can be read."""
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def terminate_like_ctrl_c() -> None:
    """Let a batch system's SIGTERM end the sweep as Ctrl-C does: in order, and its process with it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
