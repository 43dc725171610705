"""The proof of what a store says of quantisers: its model, run with what the sublayers read quantised."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from analyze.answers.records import write_record
from analyze.peaks.counted import lengths
from analyze.quantization.errors import Variant
from analyze.quantization.quantize import quantize
from analyze.quantization.record import PLAIN, Predictions, own_predictions, record_file
from analyze.quantization.result import Quantization
from analyze.quantization.variants import asked_variants, outputs_view
from analyze.question.view import View
from analyze.reading.lazy import loaded as values_of
from analyze.reading.open import open_store
from analyze.types import Progress
from capture.ablation.reload import check_nll, check_norms, reload_model
from capture.errors import OutliersError
from capture.models.load import Loaded
from capture.store.identity import STORE_ID
from capture.store.paths import user_path
from capture.store.schema import SEQUENCE, SITE

if TYPE_CHECKING:
    from capture.ablation.interventions import Edit, Target

_LIBRARIES: Final = ("torch", "transformers", "nnsight", "numpy", "outlier-features")


def quantize_with_perplexity(
    store: Path | str,
    schemes: Sequence[str] | None = None,
    *,
    thresholds: Sequence[float] = (),
    transforms: Sequence[str] = ("none",),
    view: View | None = None,
    model: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Say what quantisers lose on a store, and the perplexity of its model when they are at work in it.

    The very same schemes are applied to what the norms hand to the sublayers, at all places of the view together, while
    one sequence after another runs. What was predicted is kept in the store; only what is new is run.

    Parameters
    ----------
    store : folder of a finished store
    schemes, thresholds, transforms : as for `analyze.quantize`
    view : which sequences are run, and at which layers and sites values are quantised; it may skip no positions
    model : where the store's model is now, None where it says so itself
    device, trust_remote_code : as for `capture.models.load.load_model`
    overwrite : run again what the store has the answer to
    progress : called with (finished, all) sequences

    Returns
    -------
    analyze.Quantization

    Raises
    ------
    OutliersError
        As `analyze.quantize`; the model cannot be loaded or is another, or the memory is too small.
    """
    path = user_path(store)
    if path.exists() and not path.is_dir():
        raise OutliersError(f"{path} is no folder; expected an unpacked store, in which the result can be kept")
    data = open_store(path)
    chosen = outputs_view(view, data)
    if chosen.skip_first or chosen.skip_tokens:
        raise OutliersError(
            "perplexity is of whole sequences, and the view skips positions; leave out --skip-first and --skip-tokens"
        )
    variants = asked_variants(data, chosen, schemes, thresholds, transforms, None)
    found = quantize(path, schemes, thresholds=thresholds, transforms=transforms, view=chosen, progress=progress)
    file = record_file(path, chosen)
    if file.parent.is_symlink() or (file.parent.exists() and not file.parent.is_dir()):
        raise OutliersError(f"{file.parent} is a link or no folder, and results are kept in the store; remove it")
    known = None if overwrite else own_predictions(data, chosen)
    if known is None or any(variant.label not in known.nll for variant in variants):
        if not os.access(path, os.W_OK):
            raise OutliersError(f"{path} cannot be written, and the result is kept there; copy the store")
        loaded, placed = reload_model(path, data.attrs, model=model, device=device, trust_remote_code=trust_remote_code)
        check_norms(path, loaded, placed, data.attrs, values_of(data["norm_weight"]))
        from capture.ablation.interventions import find_targets

        targets = find_targets(loaded.model, placed)
        known = _Run(path, data, chosen, loaded, _placed(targets, data, chosen)).predictions(
            variants, known, file, progress
        )
    return found.with_predictions(known, [variant.label for variant in variants])


def _placed(targets: list[Target], data: xr.Dataset, view: View) -> list[tuple[Target, tuple[int, int]]]:
    """Modules that read at the places of a view, each with its layer and site within the view."""
    sites = [str(site) for site in data[SITE].values] if view.sites is None else list(view.sites)
    first, stop = (0, data.sizes["layer"]) if view.layer_range is None else view.layer_range
    return [
        (target, (target.layer - first, sites.index(target.site)))
        for target in targets
        if first <= target.layer < stop and target.site in sites
    ]


@dataclass(frozen=True)
class _Run:
    """A loaded model and the sequences of a store."""

    path: Path
    data: xr.Dataset
    view: View
    loaded: Loaded
    targets: list[tuple[Target, tuple[int, int]]]

    def attributes(self) -> dict[str, Any]:
        """Circumstances."""
        own = ("model_id", "model_revision", "compute_dtype", "weight_quantisation", "attention_implementation")
        return {
            **{name: self.loaded.attributes[name] for name in own},
            **{name: value for name, value in self.data.attrs.items() if name == STORE_ID},
            "device": str(self.loaded.model.device),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        }

    def predictions(
        self, variants: Sequence[Variant], known: Predictions | None, file: Path, progress: Progress | None
    ) -> Predictions:
        """What is known, completed; written after every variant."""
        numbers = list(range(self.data.sizes[SEQUENCE])) if self.view.sequences is None else list(self.view.sequences)
        length = lengths(self.data)[numbers]
        # Predictions of other circumstances are not to be compared with these.
        usable = known is not None and known.attributes == self.attributes()
        nll = dict(known.nll) if known is not None and usable else {}
        missing: list[Variant | None] = [variant for variant in variants if variant.label not in nll]
        if PLAIN not in nll:
            missing.insert(0, None)
        tokens = tuple(int(count) - 1 for count in length)
        if sum(tokens) < 1:
            raise OutliersError(f"{self.path} has sequences of one token, of which nothing is predicted")
        result = Predictions(self.view, tokens, nll, self.attributes())
        for done, variant in enumerate(missing):
            sums = []
            for step, (number, count) in enumerate(zip(numbers, length.tolist(), strict=True)):
                sums.append(self._loss(number, count, variant))
                if progress is not None:
                    progress(done * len(numbers) + step + 1, len(missing) * len(numbers))
            nll = {**nll, PLAIN if variant is None else variant.label: tuple(sums)}
            result = replace(result, nll=nll)
            write_record(self.data, file, result.dump())
        return result

    def _loss(self, number: int, count: int, variant: Variant | None) -> float:
        """Summed negative log-likelihood of one sequence, in nats."""
        from capture.ablation.interventions import edited_predictions

        ids = values_of(self.data["token_id"].isel({SEQUENCE: [number]}))[:, :count].astype(np.int32)
        targets = [] if variant is None else [target for target, _ in self.targets]
        with _memory(self.loaded, count):
            losses, _ = edited_predictions(self.loaded.traced, targets, ids, self._edit(variant))
        if variant is None:
            stored = values_of(self.data["nll"].isel({SEQUENCE: [number]}))[:, :count]
            check_nll(self.path, self.loaded, self.data.attrs, stored, losses)
        return float(losses[:, 1:].sum(dtype=np.float64))

    def _edit(self, variant: Variant | None) -> Edit:
        from capture.quantization.schemes import quantised

        places = {target.path: place for target, place in self.targets}
        return lambda target, values: values if variant is None else quantised(variant, values, places[target.path])


@contextmanager
def _memory(loaded: Loaded, count: int) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutliersError(
            f"the memory of {loaded.model.device} holds no sequence of {count} tokens; use --device auto to spread "
            "the model over several GPUs, or --device cpu"
        ) from error
