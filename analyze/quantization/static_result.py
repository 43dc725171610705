"""What static scales lose, as a table that can be read and written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from analyze.display.shown import Record, Shown
from analyze.display.text import jsonable
from analyze.quantization.schemes import Scheme
from analyze.types import Float64

_INTERVAL: Final = (0.025, 0.975)


@dataclass(frozen=True)
class ClippedChannel:
    """A feature at one place, and how often it is beyond the scale.

    Parameters
    ----------
    layer, site, feature : where
    values : number of values that clip
    """

    layer: int
    site: str
    feature: int
    values: int


@dataclass(frozen=True)
class ClippedToken:
    """A token, and how often anything at its positions is beyond the scale.

    Parameters
    ----------
    token_id : number of the token
    token_text : its text; None where the store keeps none
    places : number of (sequence, position, layer, site) at which a value clips
    """

    token_id: int
    token_text: str | None
    places: int


@dataclass(frozen=True)
class StaticQuantization(Shown):
    """What scales of a calibration text lose on another text.

    Parameters
    ----------
    name, calibration : the stores, as they were given
    hidden_size : width of the model
    schemes : all by tensor
    layers, sites : of the places
    error : (scheme, layer, site) float64, share of the squares lost with the scales of the whole calibration
    output_error : the same weighted by the squares of the weights' norms; NaN where the store has none
    own_error : the same with each matrix's own scale
    clipped_share : (layer, site) float64, share of the values that are beyond the scale
    by_number : for each number of calibration sequences, of the draws of as many: error (scheme, draw) and clipped
        share (draw,), means over places
    channels, tokens : what clips most often
    """

    name: str
    calibration: str
    hidden_size: int
    schemes: tuple[Scheme, ...]
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    error: Float64 = field(repr=False)
    output_error: Float64 = field(repr=False)
    own_error: Float64 = field(repr=False)
    clipped_share: Float64 = field(repr=False)
    by_number: dict[int, tuple[Float64, Float64]] = field(repr=False)
    channels: tuple[ClippedChannel, ...] = field(repr=False)
    tokens: tuple[ClippedToken, ...] = field(repr=False)

    def rows(self) -> list[Record]:
        """One row for each scheme, layer and site; layer and site are None in the row for all, which comes first.

        The keys are those of `Quantization.rows`, and `own_error` and `clipped_share`.
        """
        rows: list[Record] = []
        for number, scheme in enumerate(self.schemes):
            tables = {"error": self.error[number], "output_error": self.output_error[number]}
            tables |= {"own_error": self.own_error[number], "clipped_share": self.clipped_share}
            means = {name: float(mean_of_places(table)) for name, table in tables.items()}
            rows.append(self._row(scheme, None, None, means))
            rows += [
                self._row(scheme, layer, site, {name: float(table[i, j]) for name, table in tables.items()})
                for i, layer in enumerate(self.layers)
                for j, site in enumerate(self.sites)
            ]
        return rows

    def _row(self, scheme: Scheme, layer: int | None, site: str | None, values: dict[str, float]) -> Record:
        variant: Record = {"scheme": scheme.name, "transform": "none", "threshold": None, "layer": layer, "site": site}
        return variant | values | {"kept_share": 0.0, "bits": scheme.bits(self.hidden_size)}

    def number_rows(self) -> list[Record]:
        """One row for each scheme and number of calibration sequences: mean and 95% interval over the draws."""
        rows: list[Record] = []
        for number, scheme in enumerate(self.schemes):
            for count, (errors, shares) in self.by_number.items():
                row: Record = {"scheme": scheme.name, "calibration_sequences": count}
                for name, values in (("error", errors[number]), ("clipped_share", shares)):
                    low, high = np.quantile(values, _INTERVAL)
                    row |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
                rows.append(row)
        return rows

    def summary(self) -> list[tuple[str, Any]]:
        """Names and values for a reader."""
        return [
            ("store", self.name),
            ("scales from", f"{self.calibration}, {max(self.by_number)} sequences"),
            ("clipped", f"{float(mean_of_places(self.clipped_share)):.3g} of the values"),
        ]

    def tables(self) -> list[tuple[str, list[Record]]]:
        """The schemes, how they fare with fewer calibration sequences, and what clips."""
        return [
            ("share of the squares that is lost; mean over layers and sites", self.rows_for_all()),
            ("with so many calibration sequences, drawn anew: mean and 95% interval", self.number_rows()),
            ("channels that clip most often", [vars(channel) for channel in self.channels]),
            ("tokens at which something clips most often", [vars(token) for token in self.tokens]),
        ]

    def rows_for_all(self) -> list[Record]:
        """The rows for all layers and sites."""
        return [
            {name: row[name] for name in ("scheme", "error", "output_error", "own_error", "clipped_share")}
            for row in self.rows()
            if row["layer"] is None
        ]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers quantize --scales-from --json` prints."""
        return {
            "store": self.name,
            "calibration": self.calibration,
            "rows": jsonable(self.rows()),
            "by_calibration_sequences": jsonable(self.number_rows()),
            "channels": [vars(channel) for channel in self.channels],
            "tokens": [vars(token) for token in self.tokens],
        }


def mean_of_places(values: Float64) -> Float64:
    """Mean over the last two dimensions, layer and site, of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Float64 = np.where(known, values, 0).sum(axis=(-2, -1)) / np.count_nonzero(known, axis=(-2, -1))
    return means
