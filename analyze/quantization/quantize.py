"""What quantisers lose on the activations of a store: every scheme in one streaming pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from analyze.peaks.counted import counted_positions, refuse_none
from analyze.peaks.stream import stream_places
from analyze.quantization.columns import THRESHOLD
from analyze.quantization.errors import LossOf, label_key
from analyze.quantization.record import PLAIN, Predictions, own_predictions
from analyze.quantization.result import VARIANT, Quantization
from analyze.quantization.sums import WHOLE, KeptSums, Sums
from analyze.quantization.variants import asked_variants, outputs_view, weight_norm
from analyze.question.view import View
from analyze.reading.activations import has_activations
from analyze.reading.open import as_dataset
from analyze.types import Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SEQUENCE, SITE


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
        weights' peaks, a damaged chunk, or a record of perplexities that is damaged or another store's.
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
    kept = KeptSums.of(data, chosen, _shape(frame), use_cache=use_cache)
    names = [WHOLE, *(variant.label for variant in variants)]
    sums = {name: values for name in names if (values := kept.read(name)) is not None}
    missing = tuple(variant for variant in variants if variant.label not in sums)
    if missing or WHOLE not in sums:
        fresh = _streamed(data, chosen, LossOf(missing, weight_norm(frame)), _shape(frame), progress)
        for name, values in fresh.items():
            kept.write(name, values)
        sums |= fresh
    return _result(data, chosen, names[1:], sums, own_predictions(data, chosen))


def answered(store: Store, view: View | None = None) -> Quantization | None:
    """What is known of quantisers without a pass: what `quantize` found earlier, and perplexities that are kept.

    Parameters
    ----------
    store : path, or Dataset from `open_store`
    view : as for `quantize`

    Returns
    -------
    Quantization, its errors NaN where perplexities alone are known; None where nothing is

    Raises
    ------
    OutliersError
        A record of perplexities is damaged or another store's.
    """
    data = as_dataset(store)
    chosen = outputs_view(view, data)
    sums = KeptSums.of(data, chosen, _shape(chosen.select(data))).read_all()
    known = own_predictions(data, chosen)
    labels = {*sums, *(() if known is None else known.nll)} - {WHOLE, PLAIN}
    return _result(data, chosen, sorted(labels, key=_order), sums, known) if labels else None


def _order(label: str) -> tuple[str, str, float]:
    name, transform, limit = label_key(label)
    return transform, name, 0.0 if limit is None else limit


def _shape(frame: xr.Dataset) -> tuple[int, int]:
    return frame.sizes[LAYER], frame.sizes[SITE]


def _streamed(
    data: xr.Dataset, view: View, loss_of: LossOf, shape: tuple[int, int], progress: Progress | None
) -> dict[str, Sums]:
    """Sums over the sequences of a view, by label."""
    names = [WHOLE, *(variant.label for variant in loss_of.variants)]
    sums = {name: Sums(*(np.zeros(shape) for _ in range(4))) for name in names}
    for _, layer, site, loss in stream_places(data, view, loss_of, progress):
        place = layer, site
        sums[WHOLE].left_out[place] += loss.left_out
        for name, (plain, weighted), kept in zip(
            names, [loss.squares, *loss.errors], [0.0, *loss.kept.tolist()], strict=True
        ):
            sums[name].plain[place] += plain
            sums[name].weighted[place] += weighted
            sums[name].kept[place] += kept
    return sums


def _result(
    data: xr.Dataset, view: View, labels: Sequence[str], sums: Mapping[str, Sums], known: Predictions | None
) -> Quantization:
    """Sums as a table, NaN for labels that have none, with the perplexities that are known of the view."""
    counted, frame = counted_positions(data, view), view.select(data)
    keys, shape = [label_key(label) for label in labels], _shape(frame)
    nothing, unknown = np.zeros(shape), np.full(shape, np.nan)
    whole = sums.get(WHOLE, Sums(unknown, unknown, nothing, nothing))
    parts = [
        sums.get(label, Sums(unknown, unknown, nothing if limit is None else unknown, nothing))
        for label, (_, _, limit) in zip(labels, keys, strict=True)
    ]
    sequences = np.count_nonzero(counted.any(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "error": [part.plain / whole.plain for part in parts],
            "output_error": [part.weighted / whole.weighted for part in parts],
            "kept_share": [part.kept / sequences for part in parts],
        }
    dims = (VARIANT, LAYER, SITE)
    table = xr.Dataset(
        {column: (dims, np.stack(values)) for column, values in columns.items()},
        coords={
            "scheme": (VARIANT, [name for name, _, _ in keys]),
            "transform": (VARIANT, [transform for _, transform, _ in keys]),
            THRESHOLD: (VARIANT, [math.nan if limit is None else limit for _, _, limit in keys]),
            LAYER: frame[LAYER].values,
            SITE: frame[SITE].values,
        },
        attrs=frame.attrs,
    )
    # Positions that do not count are no numbers to the pass, and nobody's loss.
    behind = int(np.count_nonzero(~counted)) * shape[0] * shape[1]
    result = Quantization(
        str(data.encoding.get("source", "")),
        frame.sizes[FEATURE],
        frame.sizes[SEQUENCE],
        int(np.count_nonzero(counted)),
        int(whole.left_out.sum()) - behind if WHOLE in sums else None,
        table,
    )
    return result if known is None else result.with_predictions(known, labels)
