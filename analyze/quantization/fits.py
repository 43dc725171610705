"""Where a number format overflows, from the stored peaks alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.quantization.columns import THRESHOLD, checked_thresholds, column_peaks, kept_shares
from analyze.quantization.formats import FLOATS, NumberFormat
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset
from analyze.types import Float32, Store
from capture.store.schema import LAYER, SIGNALS, SITE

FINAL_SITE: Final = "final"
"""Name of the place where the model's last norm reads, which belongs to no layer."""
_WORDS: Final = {"input": "residual stream", "output": "norm outputs"}


@dataclass(frozen=True)
class Place:
    """Largest magnitude of one signal at one place.

    Parameters
    ----------
    signal : `input` (the residual stream) or `output` (what the norm gives)
    layer, site : where; layer is None before the model's last norm, whose site is called `final`
    feature : of the largest magnitude; None where there is no number
    magnitude : the largest; infinite where a value is, NaN where there is no number
    not_numbers : number of values that are infinite or NaN; None where the store does not say
    fits : whether the format holds every value
    """

    signal: str
    layer: int | None
    site: str
    feature: int | None
    magnitude: float
    not_numbers: int | None
    fits: bool

    def __str__(self) -> str:
        where = "the last norm" if self.layer is None else f"layer {self.layer} {self.site}"
        return f"{where}, feature {self.feature}, {self.magnitude:,.6g}"


@dataclass(frozen=True)
class Fits(Shown):
    """Whether a number format holds a model's activations.

    Parameters
    ----------
    format : the number format
    places : in the order in which the model computes them
    kept : (threshold, layer, site) float64, share of columns that LLM.int8() keeps in 16 bits
    """

    format: NumberFormat
    places: tuple[Place, ...] = field(repr=False)
    kept: xr.DataArray = field(repr=False)

    @property
    def fits(self) -> bool:
        """Whether every value at every place fits."""
        return self.first is None

    @property
    def first(self) -> Place | None:
        """The first place, in the order in which the model computes, with a value that does not fit."""
        return next((place for place in self.places if not place.fits), None)

    @property
    def rescale(self) -> float:
        """Smallest power of two by which everything divided fits; NaN where a value is no number already."""
        return self._rescale(self.format)

    def _rescale(self, number_format: NumberFormat) -> float:
        if any(place.not_numbers for place in self.places):
            return math.nan
        return number_format.rescale(float(np.max([place.magnitude for place in self.places])))  # NaN goes on

    def rows(self) -> list[dict[str, Any]]:
        """One record a place."""
        return [vars(place) for place in self.places]

    def kept_rows(self) -> list[dict[str, Any]]:
        """One record for each threshold and place; layer and site are None in the mean over all."""
        rows: list[dict[str, Any]] = []
        for threshold in self.kept[THRESHOLD].values:
            table = self.kept.sel({THRESHOLD: threshold})
            rows.append({"threshold": float(threshold), "layer": None, "site": None, "kept_share": float(table.mean())})
            rows += [
                {
                    "threshold": float(threshold),
                    "layer": int(layer),
                    "site": str(site),
                    "kept_share": float(table.sel({LAYER: layer, SITE: site})),
                }
                for layer in table[LAYER].values
                for site in table[SITE].values
            ]
        return rows

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        f = self.format
        step = "" if f.scale is None else f" in steps of {f.scale:g}"
        pairs = [("format", f"{f.name}{step}, up to {f.largest:,.6g}")]
        for signal in SIGNALS:
            places = [place for place in self.places if place.signal == signal]
            over = [place for place in places if not place.fits]
            if over:
                text = f"overflows at {len(over)} of {len(places)} places, first at {over[0]}"
            else:
                text = "fits; largest at " + str(max(places, key=lambda place: place.magnitude))
            pairs.append((_WORDS[signal], text))
        if broken := sum(place.not_numbers or 0 for place in self.places):
            pairs.append(("not finite as captured", f"{broken:,} values"))
        if not self.fits:
            pairs.append(("remedy", _remedy(self.rescale)))
        others = [NumberFormat(name) for name in FLOATS if name != f.name]
        pairs.append(("other formats", "; ".join(f"{other.name} {_remedy(self._rescale(other))}" for other in others)))
        return pairs

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The places that overflow, in order, and the columns that LLM.int8() keeps."""
        over = [row for row in self.rows() if not row["fits"]]
        kept: list[dict[str, Any]] = []
        for threshold in self.kept[THRESHOLD].values:
            table = self.kept.sel({THRESHOLD: threshold})
            most = table[table.argmax(...)]
            shares = {"mean_fraction": float(table.mean()), "largest_fraction": float(most)}
            where = {"at_layer": int(most[LAYER]), "at_site": str(most[SITE].values)}
            kept.append({"threshold": float(threshold), **shares, **where})
        found = [(f"places at which {self.format.name} overflows", over)] if over else []
        return [*found, ("columns of norm outputs that LLM.int8() keeps in 16 bits", kept)]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers fits --json` prints."""
        first = self.first
        told = ("layer", "site", "feature", "signal", "magnitude")
        return {
            "format": self.format.name,
            "scale": self.format.scale,
            "largest": self.format.largest,
            "fits": self.fits,
            "first": None if first is None else {name: jsonable(getattr(first, name)) for name in told},
            "rescale": jsonable(self.rescale),
            "places": jsonable(self.rows()),
            "kept_columns": self.kept_rows(),
        }


def _remedy(power: float) -> str:
    if math.isnan(power):
        return "holds it at no scale: values are not finite as captured"
    return "holds it" if power == 1 else f"holds everything divided by {power:,.0f}"


def fits(
    store: Store, format: str = "float16", *, scale: float | None = None, thresholds: Sequence[float] = (6.0,)
) -> Fits:
    """Say whether a number format holds what a model computed, and where it overflows first.

    The stored peaks answer it, so that a store without activations will do. What lies between two norms is not
    stored: an overflow inside of a sublayer shows in the residual stream that it adds to.

    Parameters
    ----------
    store : path, or Dataset from `open_store`
    format : `float16`, `bfloat16`, `float8_e4m3fn`, `float8_e5m2`, or `int8`; without scaling
    scale : of `int8`: what one step stands for
    thresholds : of LLM.int8(), for which the kept columns of norm outputs are counted

    Returns
    -------
    Fits

    Raises
    ------
    OutliersError
        An unknown format, a scale that is missing, wrong or not wanted, or a threshold that is no positive number.
    """
    number_format = NumberFormat(format, scale)
    limits = checked_thresholds(thresholds)
    data = as_dataset(store)
    peaks: dict[str, Float32] = {signal: reduce(np.fmax, column_peaks(data, signal)) for signal in SIGNALS}
    counts = loaded(data["nonfinite_count"]).sum(axis=1, dtype=np.int64)
    places = [
        _place(number_format, signal, int(layer), str(site), peaks[signal][i, j], int(counts[k, i, j]))
        for i, layer in enumerate(data[LAYER].values)
        for j, site in enumerate(data[SITE].values)
        for k, signal in enumerate(SIGNALS)
    ]
    if "final_high" in data:
        ends = [np.abs(loaded(data[name])) for name in ("final_high", "final_low")]
        last = np.fmax.reduce(np.fmax(*ends), axis=0)
        places.append(_place(number_format, "input", None, FINAL_SITE, last, None))
    return Fits(number_format, tuple(places), kept_shares(data, limits))


def _place(
    number_format: NumberFormat, signal: str, layer: int | None, site: str, peaks: Float32, broken: int | None
) -> Place:
    known = ~np.isnan(peaks)
    feature = int(np.nanargmax(peaks)) if known.any() else None
    magnitude = math.nan if feature is None else float(peaks[feature])
    holds = not broken and bool(known.all()) and not number_format.overflows(peaks).any()
    return Place(signal, layer, site, feature, magnitude, broken, holds)
