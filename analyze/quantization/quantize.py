"""What quantisers lose on the activations of a store: every scheme in one streaming pass."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from analyze.peaks import cache
from analyze.peaks.counted import Bools, counted_positions, refuse_none
from analyze.peaks.stream import stream_places
from analyze.quantization.columns import THRESHOLD
from analyze.quantization.errors import LossOf, Variant
from analyze.quantization.record import kept_predictions
from analyze.quantization.result import VARIANT, Quantization
from analyze.quantization.variants import asked_variants, outputs_view
from analyze.question.view import View
from analyze.reading.activations import has_activations
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.types import Float32, Float64, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SITE

_VERSION: Final = 1  # raised whenever the same question is answered otherwise
_WHOLE: Final = "squares"


def quantize(
    store: Store,
    schemes: Sequence[str] | None = None,
    *,
    thresholds: Sequence[float] = (),
    transforms: Sequence[str] = ("none",),
    view: View | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Quantization:
    """Say what quantisers lose on norm outputs, which are what a sublayer's first linear maps receive.

    One pass over the activations answers every scheme, transform and threshold. What it finds of each is kept in the
    user's cache, so that only what is new costs another pass. Perplexities that are kept in the store for the same view
    (`outliers quantize --perplexity`) stand beside the errors.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    schemes : names as `scheme` takes them; `DEFAULT_SCHEMES` where None
    thresholds : of LLM.int8()'s decomposition, each for every scheme by token, beside the scheme without any
    transforms : `none`, `hadamard`, `hadamard:SEED` or `smooth:A`; each for every scheme
    view : which layers, sites, sequences and positions count; its signal, scale and rounding do not
    use_cache : read and keep what was found
    progress : called with (finished, all) steps of the pass

    Returns
    -------
    Quantization

    Raises
    ------
    OutliersError
        An unknown scheme, transform or threshold, a store without the activations or, for `smooth`, without the
        weights' peaks, a damaged chunk, or a damaged record of perplexities.
    """
    data = as_dataset(store)
    chosen = outputs_view(view, data)
    variants = asked_variants(data, chosen, schemes, thresholds, transforms, progress)
    if not has_activations(data, "output"):
        raise OutliersError(
            f"quantize needs the norm outputs, and {data.encoding.get('source', 'the store')} keeps none that they can "
            "be had from; capture with --raw input, output or both; outliers fits answers from such a store"
        )
    counted = counted_positions(data, chosen)
    refuse_none(counted)
    frame = chosen.select(data)
    shape = frame.sizes[LAYER], frame.sizes[SITE]
    names = [_WHOLE, *(variant.label for variant in variants)]
    keys = {name: cache.cache_key(data, chosen, "quantize", _VERSION, name) if use_cache else None for name in names}
    found = {name: _read(key, shape) for name, key in keys.items() if key is not None}
    sums = {name: values for name, values in found.items() if values is not None}
    missing = tuple(variant for variant in variants if variant.label not in sums)
    if missing or _WHOLE not in sums:
        fresh = _streamed(data, chosen, LossOf(missing, _weight_norm(frame)), shape, progress)
        for name, values in fresh.items():
            key = keys[name]
            if key is not None:
                _write(data, key, values)
        sums |= fresh
    name = str(data.encoding.get("source", ""))
    result = _result(name, frame, counted, variants, sums)
    known = kept_predictions(Path(name), data.attrs, chosen) if name else None  # what is in memory has no name
    return result if known is None else result.with_predictions(known, [variant.label for variant in variants])


def _weight_norm(frame: xr.Dataset) -> Float32 | None:
    return loaded(frame["weight_norm"]) if "weight_norm" in frame else None


@dataclass
class _Sums:
    """What is added up over sequences, for one variant or, of the matrices themselves, for none."""

    plain: Float64
    weighted: Float64
    kept: Float64
    left_out: Float64


def _streamed(
    data: xr.Dataset, view: View, loss_of: LossOf, shape: tuple[int, int], progress: Progress | None
) -> dict[str, _Sums]:
    """Sums over the sequences of a view, by name of the variant."""
    names = [_WHOLE, *(variant.label for variant in loss_of.variants)]
    sums = {name: _Sums(*(np.zeros(shape) for _ in range(4))) for name in names}
    for _, layer, site, loss in stream_places(data, view, loss_of, progress):
        place = layer, site
        whole = sums[_WHOLE]
        whole.left_out[place] += loss.left_out
        for name, (plain, weighted), kept in zip(
            names, [loss.squares, *loss.errors], [0.0, *loss.kept.tolist()], strict=True
        ):
            sums[name].plain[place] += plain
            sums[name].weighted[place] += weighted
            sums[name].kept[place] += kept
    return sums


def _read(key: str, shape: tuple[int, int]) -> _Sums | None:
    """Sums that were kept; None where there are none, or not whole."""
    content = cache.read_bytes(f"{key}.npz")
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            parts = [file[name] for name in _Sums.__dataclass_fields__]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return _Sums(*parts) if all(part.shape == shape for part in parts) else None


def _write(data: xr.Dataset, key: str, sums: _Sums) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **vars(sums))
    cache.write_bytes(data, f"{key}.npz", content.getvalue())


def _result(
    name: str, frame: xr.Dataset, counted: Bools, variants: Sequence[Variant], sums: dict[str, _Sums]
) -> Quantization:
    whole, parts = sums[_WHOLE], [sums[variant.label] for variant in variants]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "error": [part.plain / whole.plain for part in parts],
            "output_error": [part.weighted / whole.weighted for part in parts],
            "kept_share": [part.kept / np.count_nonzero(counted.any(axis=1)) for part in parts],
        }
    dims = (VARIANT, LAYER, SITE)
    limits = [math.nan if variant.threshold is None else variant.threshold for variant in variants]
    table = xr.Dataset(
        {column: (dims, np.stack(values)) for column, values in columns.items()},
        coords={
            "scheme": (VARIANT, [variant.scheme.name for variant in variants]),
            "transform": (VARIANT, [variant.transform.name for variant in variants]),
            THRESHOLD: (VARIANT, limits),
            LAYER: frame[LAYER].values,
            SITE: frame[SITE].values,
        },
        attrs=frame.attrs,
    )
    sizes = frame.sizes
    # Positions that do not count are no numbers to the pass, and nobody's loss.
    left_out = int(whole.left_out.sum()) - int(np.count_nonzero(~counted)) * sizes[LAYER] * sizes[SITE]
    return Quantization(name, sizes[FEATURE], sizes[SEQUENCE], int(np.count_nonzero(counted)), left_out, table)
