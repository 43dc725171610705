"""The causal test: what a model loses when its outlier features are set to zero before the sublayers read them."""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from analyze.answers.ablation import SITE_CHOICES, Ablation, check_owner, read_ablation
from analyze.answers.find import find_outliers
from analyze.answers.records import refuse_foreign, write_record
from analyze.peaks.counted import lengths
from analyze.question.checks import check_repeats
from analyze.question.criteria import Criteria
from analyze.reading.lazy import loaded as values_of
from analyze.reading.open import open_store
from analyze.types import Progress
from capture.ablation.reload import check_nll, check_norms, reload_model
from capture.errors import OutliersError
from capture.models.load import Loaded
from capture.models.placement import input_device
from capture.store.identity import STORE_ID
from capture.store.paths import user_path
from capture.store.privacy import command_line
from capture.store.schema import ABLATION, FEATURE, POSITION, SEQUENCE

if TYPE_CHECKING:
    import xarray as xr

    from capture.ablation.interventions import Target
    from capture.sites.place import SiteMap


_SEQUENCES: Final = 4
_LIBRARIES: Final = ("torch", "transformers", "nnsight", "numpy", "outlier-features")


def ablate(
    store: Path | str,
    criteria: Criteria | None = None,
    *,
    model: str | None = None,
    device: str = "auto",
    sequences: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    batch_size: int = 1,
    site: str = "ln_attn",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Ablation:
    """Run a store's model again with its outlier features set to zero, and with as many random others.

    The features are zeroed in what the sublayers read, the norm's output: first in one layer's attention at a time,
    while the model goes on with its regular values, then in all layers together. The result is kept in the store, and
    the same question is answered from there; an interrupted run goes on with the sequence where it stopped.

    Parameters
    ----------
    store : folder of a finished store
    criteria : which features are outliers, all that qualify in any sequence; None for the preset `dettmers`
    model : where the store's model is now, None where it says so itself
    device, trust_remote_code : as for `capture.models.load.load_model`
    sequences : how many of the store's sequences to run, from the first; None for 4, or all where there are fewer
    repeats : number of random draws of as many features that are no outliers
    seed : where their randomness starts
    batch_size : sequences that go through the model together
    site : `ln_attn`, `ln_mlp`, or `both`: in front of which sublayers
    overwrite : run again what the store has the answer to
    progress : called with (finished, all) passes

    Raises
    ------
    OutliersError
        No feature or too many are outliers, the model cannot be loaded or is another, or the memory is too small.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), section 4.2, and the last columns of Table 4.
    """
    path = user_path(store)
    if site not in SITE_CHOICES:
        raise OutliersError(f"site is {site!r}; expected one of {', '.join(SITE_CHOICES)}")
    for name, number, least in (
        ("sequences", 1 if sequences is None else sequences, 1),
        ("batch-size", batch_size, 1),
    ):
        if number < least:
            raise OutliersError(f"{name} is {number}; expected {least} or more")
    check_repeats(repeats, seed)
    if path.exists() and not path.is_dir():
        raise OutliersError(f"{path} is no folder; expected an unpacked store, in which the result can be kept")
    dataset = open_store(path)
    captured = dataset.sizes[SEQUENCE]
    sequences = min(_SEQUENCES, captured) if sequences is None else sequences
    if sequences > captured:
        raise OutliersError(f"sequences is {sequences}, and {path} has {captured}; use fewer")
    found = find_outliers(dataset, Criteria.preset("dettmers") if criteria is None else criteria)
    features = tuple(sorted({row.feature for row in found.features}))
    question = _Question(
        found.criteria, site, features, _draws(features, found.hidden_size, repeats, seed), seed, sequences
    )
    folder = path / ABLATION
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutliersError(f"{folder} is a link or no folder, and results are kept in the store itself; remove it")
    file = folder / f"{question.key}.json"
    if file.is_file() and not overwrite:
        known = read_ablation(file)
        check_owner(file, known, dataset.attrs, dataset.sizes[FEATURE])
        refuse_foreign(file, (_Question.of(known).key,), (question.key,), "ablate")
        return known
    if not os.access(path, os.W_OK):
        raise OutliersError(f"{path} cannot be written, and the result is kept there; copy the store, or its model")
    loaded, placed = reload_model(path, dataset.attrs, model=model, device=device, trust_remote_code=trust_remote_code)
    check_norms(path, loaded, placed, dataset.attrs, values_of(dataset["norm_weight"]))
    return _run(_Experiment(path, dataset, loaded, placed, question, batch_size), file, progress)


@dataclass(frozen=True)
class _Question:
    """What decides the result, given the store."""

    criteria: Criteria
    site: str
    features: tuple[int, ...]
    draws: tuple[tuple[int, ...], ...]
    seed: int
    sequences: int

    @classmethod
    def of(cls, found: Ablation) -> _Question:
        """The question that a record answers."""
        return cls(found.criteria, found.site, found.features, found.random_features, found.seed, found.sequences)

    @property
    def key(self) -> str:
        """Name of the file that answers it."""
        criteria = self.criteria.to_dict()
        if not criteria["skip_tokens"]:
            del criteria["skip_tokens"]  # names of files that were written before it could be asked
        plain = {**vars(self), "criteria": criteria}
        return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def variants(self) -> tuple[tuple[int, ...], ...]:
        """Features that are zero, in the order of `Ablation`."""
        return ((), self.features, *self.draws)


def _draws(features: tuple[int, ...], width: int, repeats: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For each repeat as many features that are no outliers, all sets alike probable."""
    if not features:
        raise OutliersError(
            "the criterion finds no outlier feature, so there is nothing to take away; lower --magnitude, or choose "
            "another --signal; see: outliers find STORE --all-conventions"
        )
    others = np.setdiff1d(np.arange(width), features)
    if len(features) > len(others):
        raise OutliersError(
            f"the criterion finds {len(features)} outlier features of {width}, and a control needs as many others; "
            "raise --magnitude, or choose another --signal"
        )
    # A stream of randomness for each repeat: more repeats keep the first ones.
    generators = (np.random.default_rng((seed, number)) for number in range(repeats))
    return tuple(
        tuple(sorted(generator.choice(others, len(features), replace=False).tolist())) for generator in generators
    )


@dataclass(frozen=True)
class _Experiment:
    path: Path
    dataset: xr.Dataset
    loaded: Loaded
    placed: SiteMap
    question: _Question
    batch_size: int

    @cached_property
    def length(self) -> npt.NDArray[np.int64]:
        """Positions of each sequence of the store."""
        return lengths(self.dataset)

    def batches(self, done: int) -> list[range]:
        """Sequences that are left, in order: those that follow each other and are equally long go together."""
        left = range(done, self.question.sequences)
        runs = [list(run) for _, run in itertools.groupby(left, key=lambda number: int(self.length[number]))]
        return [
            range(begin, min(begin + self.batch_size, run[-1] + 1))
            for run in runs
            for begin in range(run[0], run[-1] + 1, self.batch_size)
        ]

    def attributes(self) -> dict[str, Any]:
        """Circumstances, apart from time and command."""
        own = ("model_id", "model_revision", "compute_dtype", "weight_quantisation", "attention_implementation")
        return {
            **{name: self.loaded.attributes[name] for name in own},
            **{name: value for name, value in self.dataset.attrs.items() if name == STORE_ID},
            "device": str(input_device(self.loaded.model)),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }

    def ablation(self, results: Mapping[str, npt.NDArray[np.float64]], attributes: Mapping[str, Any]) -> Ablation:
        """The record of what is known so far."""
        q = self.question
        sizes = self.dataset.sizes
        ends = self.length[: results["nll"].shape[1]]
        return Ablation(
            q.criteria,
            q.site,
            q.features,
            q.draws,
            sizes[FEATURE],
            sizes[POSITION],
            q.seed,
            **results,
            attributes=attributes,
            lengths=None if (self.length == sizes[POSITION]).all() else ends,
        )


def _run(experiment: _Experiment, file: Path, progress: Progress | None) -> Ablation:
    """Batch after batch, each kept in a draft, until the record is whole."""
    from capture.ablation.interventions import find_targets

    question, attributes = experiment.question, experiment.attributes()
    targets = find_targets(experiment.loaded.model, experiment.placed)
    draft = file.with_name(f".{file.stem}.partial")
    known = _drafted(draft, experiment, attributes)
    parts = [] if known is None else [{name: getattr(known, name) for name in ("top1", "next_top1", "nll")}]
    done = 0 if known is None else known.sequences
    steps = len(question.variants) + (question.site != "ln_mlp")
    batches = experiment.batches(done)
    for number, batch in enumerate(batches):

        def told(step: int, before: int = number * steps) -> None:
            if progress is not None:
                progress(before + step, len(batches) * steps)

        parts.append(_batch(experiment, targets, batch, told))
        together = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        write_record(experiment.dataset, draft, experiment.ablation(together, attributes).dump())
    together = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    command = command_line()
    result = experiment.ablation(
        together,
        {
            **attributes,
            **({} if command is None else {"command": command}),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    write_record(experiment.dataset, file, result.dump())
    draft.unlink(missing_ok=True)
    return result


def _drafted(draft: Path, experiment: _Experiment, attributes: Mapping[str, Any]) -> Ablation | None:
    """What an interrupted run of the same question left, where it computed as this one does."""
    try:
        known = read_ablation(draft)
    except OutliersError:
        return None
    question = experiment.question
    if known.sequences > question.sequences:
        return None
    same = replace(question, sequences=known.sequences).key == _Question.of(known).key
    return known if same and known.attributes == json.loads(json.dumps(attributes)) else None


def _batch(
    experiment: _Experiment, targets: list[Target], batch: range, told: Callable[[int], None]
) -> dict[str, npt.NDArray[np.float64]]:
    """All variants of a few sequences."""
    import torch

    from capture.ablation.interventions import attention_peaks, predictions
    from capture.sites.probe import plain_attention

    loaded, question, rows = experiment.loaded, experiment.question, {SEQUENCE: list(batch)}
    end = int(experiment.length[batch[0]])
    ids = values_of(experiment.dataset["token_id"].isel(rows))[:, :end].astype(np.int32)
    edited = [
        target for target in targets if question.site == "both" or target.attention == (question.site == "ln_attn")
    ]
    nll, top = [], []
    variants, layers = question.variants, experiment.placed.layers
    try:
        for number, features in enumerate(variants):
            losses, largest = predictions(loaded.traced, edited, ids, features)
            if number == 0:
                stored = values_of(experiment.dataset["nll"].isel(rows))[:, :end]
                check_nll(experiment.path, loaded, experiment.dataset.attrs, stored, losses)
            nll.append(losses[:, 1:].mean(axis=1, dtype=np.float64))
            top.append(largest)
            told(number + 1)
        if question.site == "ln_mlp":
            peaks = np.full((len(variants), len(batch), layers), np.nan)
        else:
            with plain_attention(loaded.model):
                peaks = attention_peaks(loaded.traced, targets, layers, ids, variants)
            told(len(variants) + 1)
    except torch.OutOfMemoryError as error:
        raise OutliersError(
            f"the memory of {loaded.model.device} holds no batch of {len(batch)} x {ids.shape[1]} tokens; "
            "use a smaller --batch-size, or --device auto to spread the model over several GPUs, or --device cpu"
        ) from error
    return {"top1": peaks, "next_top1": np.stack(top), "nll": np.stack(nll)}
