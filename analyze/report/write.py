"""A report of stores: what is embedded, and how finely, within a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import xarray as xr

from analyze.answers.facts import ROUNDED_NOTE, nonfinite_count, perplexity
from analyze.display.text import plain
from analyze.peaks.lookup import view_peaks
from analyze.question.checks import check_choice
from analyze.question.criteria import COUNTINGS, LAYER_UNITS, PRESETS, SATURATED, Criteria
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.report import grid
from analyze.report.embed import all_packed, packed, text, text_length
from analyze.report.levels import bucket_starts, span, tally
from analyze.report.page import render
from analyze.report.quantised import QUANTISED, Quantised, offered
from analyze.types import Progress, Store
from capture.errors import OutliersError
from capture.store.files import write_file
from capture.store.output import output_file, output_path
from capture.store.privacy import last_part, shortened
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SIGNALS, SITE, mantissa_bits

BUDGET: Final = 5_000_000
"""Bytes that a mail carries without complaint."""

_SAMPLE_SEQUENCES = 4
_SAMPLE_FEATURES = 256
_WHOLE_TO_SAMPLE = 0.85  # the whole packs better than its sample says
_SUFFIXES = (".html", ".htm")
_THRESHOLD = 6.0  # of LLM.int8(): what the page opens with
_LONGEST = 200  # characters of one text of a store
# What identifies a capture; never the command line or paths, which may be private.
_ATTRIBUTES = (
    "model_id",
    "model_revision",
    "architecture",
    "compute_dtype",
    "weight_quantisation",
    "norm_kind",
    "total_parameters",
    "active_parameters",
    "text_source",
    "text_revision",
)


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Parameters
    ----------
    path : the file
    bytes : its size
    stores : number of stores
    magnitudes : thresholds that the page can answer, ascending
    """

    path: Path
    bytes: int
    stores: int
    magnitudes: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers report --json` prints."""
        return {**vars(self), "path": str(self.path), "magnitudes": list(self.magnitudes)}

    def __str__(self) -> str:
        ends = f"{self.magnitudes[0]:g} to {self.magnitudes[-1]:g}"
        stores = "1 store" if self.stores == 1 else f"{self.stores} stores"
        return f"{self.path}: {self.bytes / 1e6:.2f} MB, {stores}, {len(self.magnitudes)} magnitudes from {ends}"


def write_report(
    stores: Store | Sequence[Store],
    out: Path | str,
    criteria: Criteria | None = None,
    *,
    signals: Sequence[str] = SIGNALS,
    magnitudes: Sequence[float] | None = None,
    budget: float = BUDGET,
    quantize: bool = False,
    keep_paths: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write one HTML file that answers threshold questions about stores by itself.

    At every magnitude that it offers, and for any fractions, countings and layer units, its numbers are those of
    `find_outliers`, because it holds the counts of peaks between each magnitude and the next. It also shows how many
    columns LLM.int8() keeps at each threshold, and what quantisers lose, where `quantize` has found that earlier.

    Parameters
    ----------
    stores : one or several, as in `find_outliers`
    out : the file, ending in .html, which is replaced
    criteria : the view that is embedded, and the settings that the page opens with
    signals : which signals are embedded, `input`, `output` or both
    magnitudes : thresholds to offer; None for round numbers over the range of the peaks, as many as the budget allows
    budget : most bytes of the file
    quantize : spend a pass over the activations of each store on what the default schemes lose, with some thresholds
    keep_paths : show paths of this machine whole; of others only the last part is handed on
    progress : called with (finished, all) steps

    Raises
    ------
    OutliersError
        A store that cannot be read or serve the view, no store or signal, a page that does not fit the budget, a file
        that cannot be one, or what `quantize` refuses.
    """
    out = output_path(out)
    if out.suffix.lower() not in _SUFFIXES:  # an archive of a store, named by mistake, is not replaced
        raise OutliersError(f"{out} has the suffix {out.suffix!r}; expected a file ending in .html")
    output_file(out)
    if not budget > 0:
        raise OutliersError(f"budget is {budget / 1e6:g} MB; expected a size above 0")
    criteria = Criteria() if criteria is None else criteria
    signals = tuple(name for name in SIGNALS if name in _checked(signals))
    datasets = [as_dataset(s) for s in ([stores] if isinstance(stores, str | Path | xr.Dataset) else stores)]
    if not datasets:
        raise OutliersError("no store to report on; expected one or more")
    own = None if magnitudes is None else grid.chosen(magnitudes)
    resolved = [_resolved(store, criteria, number, len(datasets)) for number, store in enumerate(datasets)]
    sources = [
        _Source.of(store, each, signals, quantize, keep_paths, progress)
        for store, each in zip(datasets, resolved, strict=True)
    ]
    html, values = _fitted(sources, criteria, signals, own, budget, progress)
    write_file(out, html)
    return Report(out, len(html), len(sources), tuple(values))


def _resolved(store: xr.Dataset, criteria: Criteria, number: int, stores: int) -> Criteria:
    """The criteria of one store; of several, the one that has no such view is named."""
    try:
        return criteria.resolve(store)
    except OutliersError as error:
        if stores == 1:
            raise
        raise OutliersError(f"{store.encoding.get('source', f'store {number + 1}')}: {error}") from error


def _checked(signals: Sequence[str]) -> Sequence[str]:
    for name in signals:
        check_choice("signal", name, SIGNALS)
    if not signals:
        raise OutliersError("no signal to embed; expected input, output or both")
    return signals


@dataclass(frozen=True)
class _Source:
    """A store, the peaks of its view for each signal, what is known of quantisers, and whether its paths are whole."""

    store: xr.Dataset
    criteria: dict[str, Criteria]
    peaks: dict[str, xr.Dataset]
    quantised: Quantised
    keep_paths: bool

    def public(self, value: Any) -> str:
        """A value of the store as one line, not endless, and unless asked for with nothing of a path but its end."""
        return plain(value if self.keep_paths else shortened(value))[:_LONGEST]

    def place(self, folder: str) -> str:
        """The same of where the store is."""
        return plain(folder if self.keep_paths else last_part(folder))[:_LONGEST]

    @classmethod
    def of(
        cls,
        store: xr.Dataset,
        criteria: Criteria,
        signals: Sequence[str],
        quantize: bool,
        keep_paths: bool,
        progress: Progress | None,
    ) -> _Source:
        resolved = {name: replace(criteria, signal=cast(Any, name)) for name in signals}
        peaks = {name: view_peaks(store, each, progress=progress) for name, each in resolved.items()}
        quantised = Quantised.of(store, resolved, peaks, compute=quantize, progress=progress)
        return cls(store, resolved, peaks, quantised, keep_paths)


def _fitted(
    sources: Sequence[_Source],
    criteria: Criteria,
    signals: Sequence[str],
    own: list[float] | None,
    budget: float,
    progress: Progress | None,
) -> tuple[bytes, list[float]]:
    """The page with the densest grid that fits."""
    spans = [span(peaks, criteria) for source in sources for peaks in source.peaks.values()]
    high = max(most for _, most in spans)
    # Signals differ in size, so that the grid reaches down to the smallest: but not for ever.
    low = min(1.0, max(min(least for least, _ in spans), high / 10**grid.DECADES))
    low = low if low > 0 else 1.0
    needed = 0.0
    samples = [_Sample.of(peaks, source.criteria[name]) for source in sources for name, peaks in source.peaks.items()]
    for density in range(len(grid.DENSITIES)) if own is None else (0,):
        values = grid.grid(low, high, density) if own is None else own
        fixed = len(_page(sources, criteria, signals, values, [], own is not None))
        needed = fixed + sum(sample.predicted(values) for sample in samples)
        if needed * _WHOLE_TO_SAMPLE > budget:
            continue
        blocks = _blocks(sources, signals, values, progress)
        html = _page(sources, criteria, signals, values, blocks, own is not None)
        needed = len(html)
        if needed <= budget:
            return html, values
    remedy = "fewer magnitudes" if own is not None else "fewer stores or --sequences, one --signal"
    raise OutliersError(
        f"the report needs about {needed / 1e6:.1f} MB, the budget is {budget / 1e6:g} MB; "
        f"choose {remedy}, or a larger --budget"
    )


@dataclass(frozen=True)
class _Sample:
    """Some features and sequences of a view, in memory; all of them where there are few.

    Parameters
    ----------
    peaks, criteria : of the sample
    features, sequences : how many times as many the view has
    """

    peaks: xr.Dataset
    criteria: Criteria
    features: float
    sequences: float

    @classmethod
    def of(cls, peaks: xr.Dataset, criteria: Criteria) -> _Sample:
        width, sequences = peaks.sizes[FEATURE], peaks.sizes[SEQUENCE]
        numbers = np.unique(np.linspace(0, sequences - 1, min(sequences, _SAMPLE_SEQUENCES)).astype(int))
        part = peaks.isel({FEATURE: slice(None, None, max(1, width // _SAMPLE_FEATURES)), SEQUENCE: numbers})
        part = part.map(lambda array: array.copy(data=loaded(array)))
        return cls(part, criteria, width / part.sizes[FEATURE], sequences / len(numbers))

    def predicted(self, values: list[float]) -> float:
        """Bytes that the data of the view take in a page with these magnitudes."""
        streams = all_packed(tally(self.peaks, self.criteria, values).arrays)
        over_sequences = ("order", "profile", "negative", "buckets")
        return sum(
            text_length(stream) * self.features * (1 if name in over_sequences else self.sequences)
            for name, stream in streams.items()
        )


def _blocks(
    sources: Sequence[_Source], signals: Sequence[str], values: list[float], progress: Progress | None
) -> list[dict[str, dict[str, tuple[str, int]]]]:
    """For each store and signal its arrays as base64, with the bytes of an item; and `QUANTISED`, the kept columns."""
    thresholds = offered([source.quantised for source in sources], values)
    sizes = [peaks.sizes[SEQUENCE] for source in sources for peaks in source.peaks.values()]
    before, result = 0, []
    for source in sources:
        parts = {}
        for name in signals:
            peaks = source.peaks[name]
            counted = tally(peaks, source.criteria[name], values, _part_of(progress, before, sum(sizes)))
            before += peaks.sizes[SEQUENCE]
            streams = all_packed(counted.arrays)
            parts[name] = {key: (text(streams[key]), array.itemsize) for key, array in counted.arrays.items()}
        kept = source.quantised.kept(thresholds)
        parts[QUANTISED] = {} if kept is None else {"kept": (text(packed(kept)), kept.itemsize)}
        result.append(parts)
    return result


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    whole = progress
    return lambda finished, _: whole(before + finished, total)


def _page(
    sources: Sequence[_Source],
    criteria: Criteria,
    signals: Sequence[str],
    values: list[float],
    data: list[dict[str, dict[str, tuple[str, int]]]],
    own: bool,
) -> bytes:
    blocks: list[str] = []
    stores = []
    for number, source in enumerate(sources):
        facts = _facts(source)
        if data:
            for name, part in {**facts["signals"], QUANTISED: facts[QUANTISED]}.items():
                index = {}
                for key, (block, size) in data[number][name].items():
                    index[key] = [len(blocks), size]
                    blocks.append(block)
                part["blocks"] = index
        stores.append(facts)
    thresholds = offered([source.quantised for source in sources], values)
    opening = {
        "magnitude": _nearest(values, criteria.magnitude),
        "threshold": _nearest(thresholds, _THRESHOLD),
        "layers": criteria.layers,
        "positions": criteria.positions,
        "signal": criteria.signal if criteria.signal in signals else signals[0],
        "counting": criteria.counting,
        "unit": criteria.layer_unit,
    }
    facts = {
        "magnitudes": values,
        "thresholds": thresholds,
        "chosen": own,
        "opening": opening,
        "signals": list(signals),
        "countings": list(COUNTINGS),
        "units": list(LAYER_UNITS),
        "presets": {name: {**preset} for name, preset in PRESETS.items()},
        "saturated": SATURATED,
        "scale": criteria.scale,
        "view": _view_words(criteria),
        "stores": stores,
    }
    return render(facts, blocks).encode()


def _nearest(values: Sequence[float], wanted: float) -> int:
    """Index of the nearest value; the first of two that are as near."""
    return min(range(len(values)), key=lambda i: (abs(values[i] - wanted), i), default=0)


def _facts(source: _Source) -> dict[str, Any]:
    store = source.store
    peaks = next(iter(source.peaks.values()))
    criteria = next(iter(source.criteria.values()))
    folder = store.encoding.get("source")
    name = source.public(store.attrs.get("model_id") or "a store without a model's name")
    bits = mantissa_bits(store.attrs)
    likelihood = perplexity(store, criteria)
    return {
        "name": name,
        "folder": None if folder is None else source.place(str(folder)),
        "sequences": [int(n) for n in peaks[SEQUENCE].values],
        "layers": [int(n) for n in peaks[LAYER].values],
        "sites": [plain(str(label))[:_LONGEST] for label in peaks[SITE].values],
        "positions": peaks.sizes[POSITION],
        "counted": peaks["counted"].values.tolist(),
        "first_position": int(peaks[POSITION].values[0]),
        "buckets": bucket_starts(peaks.sizes[POSITION]),
        "width": peaks.sizes[FEATURE],
        "rounded": None if bits is None else ROUNDED_NOTE.format(bits),
        "perplexity": likelihood if math.isfinite(likelihood) else None,
        "signals": {name: {"nonfinite": nonfinite_count(store, each)} for name, each in source.criteria.items()},
        QUANTISED: {**source.quantised.facts},
        "attributes": [
            [key, source.public(value)]
            for key in _ATTRIBUTES
            if (value := store.attrs.get(key)) is not None and value != ""
        ],
    }


def _view_words(criteria: Criteria) -> list[str]:
    """The words of `outliers find` that choose the embedded view, without the signal."""
    return [word for name, value in _settings(criteria) for word in (f"--{name.replace('_', '-')}", value)]


def _settings(criteria: Criteria) -> Iterator[tuple[str, str]]:
    plain_view = View()
    for field in fields(View):
        value = getattr(criteria, field.name)
        if field.name != "signal" and value != getattr(plain_view, field.name):
            separator = ":" if field.name == "layer_range" else ","
            yield field.name, separator.join(map(str, value)) if isinstance(value, tuple) else str(value)
