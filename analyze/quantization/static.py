"""What is lost where scales do not follow the data: those of a calibration text, applied to another text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from analyze.peaks.stream import stream_places
from analyze.quantization.columns import column_peaks
from analyze.quantization.schemes import Scheme, schemes_for
from analyze.quantization.static_loss import StaticLossOf, StaticTotal
from analyze.quantization.static_result import StaticQuantization, mean_of_places
from analyze.quantization.variants import outputs_view, weight_norm
from analyze.question.checks import whole
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Float32, Float64, Progress, Store
from capture.errors import OutliersError
from capture.store.schema import FEATURE, LAYER, SITE

DEFAULT_SCHEMES: Final = ("int8-tensor", "fp8-tensor")


def quantize_static(
    store: Store,
    calibration: Store,
    schemes: Sequence[str] | None = None,
    *,
    view: View | None = None,
    resamples: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> StaticQuantization:
    """Quantise norm outputs of one store with the scales of another: the largest magnitude of each layer and site.

    Magnitudes beyond it become it: they clip. A calibration of n sequences has the largest of its n maxima, so that
    one pass, with the scale of every calibration sequence, answers for any number of them.

    Parameters
    ----------
    store : what is quantised: path, or Dataset from `open_store`
    calibration : whose norm outputs set the scales; its peaks are enough
    schemes : by tensor: `intB-tensor` or `fp8-tensor`; int8 and fp8 where None
    view : which layers, sites, sequences and positions of `store` count; its signal, scale and rounding do not
    resamples : how often calibration sequences are drawn anew, with replacement, 1 or more
    seed : of the draws
    progress : called with (finished, all) steps of the pass

    Returns
    -------
    StaticQuantization

    Raises
    ------
    OutliersError
        The stores are of different models, a scheme is not by tensor, or the calibration has an infinite value.
    """
    if whole("resamples", resamples) < 1:
        raise OutliersError(f"resamples is {resamples}; expected 1 or more")
    data, other = as_dataset(store), as_dataset(calibration)
    _check_same(data, other)
    found = _by_tensor(DEFAULT_SCHEMES if schemes is None else schemes, data.sizes[FEATURE])
    chosen = outputs_view(view, data)
    frame = chosen.select(data)
    maxima = _sequence_maxima(other, chosen)
    total = StaticTotal(len(found), maxima.shape, frame.sizes[FEATURE])
    token_id = loaded(frame["token_id"])
    loss_of = StaticLossOf(found, np.sort(maxima, axis=0), weight_norm(frame))
    for n, layer, site, loss in stream_places(data, chosen, loss_of, progress):
        total.add((layer, site), loss, token_id[n])
    errors, own_errors, shares = total.errors(), total.own_errors(), total.shares()
    return StaticQuantization(
        name=str(data.encoding.get("source", "")),
        calibration=str(other.encoding.get("source", "")),
        hidden_size=frame.sizes[FEATURE],
        schemes=found,
        layers=tuple(int(layer) for layer in frame[LAYER].values),
        sites=tuple(str(site) for site in frame[SITE].values),
        error=errors[:, -1, 0],
        output_error=errors[:, -1, 1],
        own_error=own_errors[:, 0],
        clipped_share=shares[-1],
        by_number=_by_number(maxima, errors[:, :, 0], shares, resamples, seed),
        channels=total.top_channels(frame),
        tokens=total.top_tokens(token_texts(data)),
    )


def _by_tensor(names: Sequence[str], width: int) -> tuple[Scheme, ...]:
    """The schemes of names; one that takes its scales from what it quantises is refused."""
    found = schemes_for(names, width)
    for one in found:
        if one.share != "tensor":
            raise OutliersError(
                f"scheme {one.name} takes its scales from what it quantises; scales of another store are for schemes "
                "by tensor, such as int8-tensor"
            )
    return found


def _check_same(data: xr.Dataset, other: xr.Dataset) -> None:
    """Refuse stores of different models."""
    named = [str(one.attrs.get("model_id")) for one in (data, other)]
    same = all(data.sizes[dim] == other.sizes[dim] for dim in (LAYER, SITE, FEATURE)) and np.array_equal(
        loaded(data["norm_weight"]), loaded(other["norm_weight"])
    )
    if not same:
        raise OutliersError(
            f"the calibration store is of another model: its norms are not those of {named[0]} (it says {named[1]}); "
            "capture the calibration text with the same model"
        )


def _sequence_maxima(other: xr.Dataset, view: View) -> Float32:
    """Largest magnitude at each place of each sequence of the calibration, (sequence, layer, site)."""
    places = View(layer_range=view.layer_range, sites=view.sites).select(other)
    largest: Float32 = np.stack([np.fmax.reduce(peaks, axis=2) for peaks in column_peaks(places, "output")])
    if not np.isfinite(largest).all():
        n, layer, site = np.argwhere(~np.isfinite(largest))[0]
        raise OutliersError(
            f"the calibration store has no finite largest magnitude in sequence {n} at layer "
            f"{places[LAYER].values[layer]}, {places[SITE].values[site]}; calibrate with another text or dtype"
        )
    return largest


def _by_number(
    maxima: Float32, errors: Float64, shares: Float64, resamples: int, seed: int
) -> dict[int, tuple[Float64, Float64]]:
    """Means over places of what calibrations of so many sequences lose and clip.

    Parameters
    ----------
    maxima : (sequence, layer, site), of the calibration
    errors, shares : (scheme, limit, layer, site) and (limit, layer, site), at each place by ascending limit
    resamples, seed : of the draws, with replacement

    Returns
    -------
    for each number of sequences, powers of two and all: (scheme, draw) and (draw,) float64
    """
    sequences = len(maxima)
    ranks = np.argsort(np.argsort(maxima, axis=0, kind="stable"), axis=0)
    generator = np.random.default_rng(seed)
    result = {}
    for count in sorted({*(2**k for k in range(sequences.bit_length()) if 2**k <= sequences), sequences}):
        # The same sequences are drawn at every place: those of a calibration go through the model together.
        drawn = np.stack([ranks[generator.integers(sequences, size=count)].max(axis=0) for _ in range(resamples)])
        of_draws = [np.take_along_axis(values, drawn, axis=0) for values in (*errors, shares)]
        *lost, clipped = (mean_of_places(values) for values in of_draws)
        result[count] = np.stack(lost), clipped
    return result
