"""What quantisers lose on a store, as a table that can be read, drawn and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from analyze.display.shown import Record, Shown
from analyze.display.text import jsonable
from analyze.quantization.record import PLAIN, Predictions
from analyze.quantization.schemes import scheme
from analyze.quantization.variants import without_weights
from capture.store.schema import LAYER, SITE

VARIANT: Final = "variant"
KEYS: Final = ("scheme", "transform", "threshold")
"""What tells one variant from another."""


@dataclass(frozen=True)
class Quantization(Shown):
    """Errors of every scheme, transform and threshold, at every layer and site.

    Parameters
    ----------
    name : of the store, as it was given
    hidden_size : width of the model
    sequences, tokens : what was quantised
    left_out : number of (sequence, layer, site, position) rows with a value that is not finite, which count nowhere;
        None where no errors are known
    table : Dataset over (variant, layer, site) of `error`, `output_error` and `kept_share`, float64, with coordinates
        `scheme`, `transform` and `threshold` (NaN where no columns are kept) along variant; where the model was run
        with the quantisers at work, also `perplexity` (variant,)
    perplexity : of the model without them, on the same sequences; None where it was not run
    """

    name: str
    hidden_size: int
    sequences: int
    tokens: int
    left_out: int | None
    table: xr.Dataset = field(repr=False)
    perplexity: float | None = None

    def with_predictions(self, known: Predictions, labels: Sequence[str]) -> Quantization:
        """The same with the perplexities of a record.

        Parameters
        ----------
        known : what the model predicted for the same view
        labels : `Variant.label` of each variant, in order; NaN where the record has none of it
        """
        values = [known.perplexity(label) if label in known.nll else np.nan for label in labels]
        table = self.table.assign(perplexity=(VARIANT, values))
        return replace(self, table=table, perplexity=known.perplexity(PLAIN))

    @property
    def rows_for_all(self) -> list[Record]:
        """One row a variant: the mean over layers and sites, in the order in which they were asked for."""
        return [self._row(number, None, None) for number in range(self.table.sizes[VARIANT])]

    def rows(self) -> list[Record]:
        """One row for each variant, layer and site; layer and site are None in the row for all, which comes first."""
        rows = []
        for number in range(self.table.sizes[VARIANT]):
            rows.append(self._row(number, None, None))
            rows += [
                self._row(number, i, j) for i in range(self.table.sizes[LAYER]) for j in range(self.table.sizes[SITE])
            ]
        return rows

    def _row(self, number: int, layer: int | None, site: int | None) -> dict[str, Any]:
        one = self.table.isel({VARIANT: number})
        threshold = float(one["threshold"])
        row: Record = {
            "scheme": str(one["scheme"].values),
            "transform": str(one["transform"].values),
            "threshold": None if np.isnan(threshold) else threshold,
            "layer": None if layer is None else int(one[LAYER].values[layer]),
            "site": None if site is None else str(one[SITE].values[site]),
        }
        for name in ("error", "output_error", "kept_share"):
            values = one[name].values if layer is None else one[name].values[layer, site]
            known = values[~np.isnan(values)]
            row[name] = float(known.mean()) if known.size else None
        kept = row["kept_share"]
        row["bits"] = None if kept is None else scheme(row["scheme"]).bits(self.hidden_size, kept)
        if self.perplexity is not None:
            value = float(one["perplexity"])
            row["perplexity"] = value if layer is None and not np.isnan(value) else None
        return row

    @property
    def rank_correlation(self) -> dict[str, float] | None:
        """Whether the error ranks variants as the perplexity does; None where too few have both.

        Returns
        -------
        `spearman`, `p_value` (two-sided, scipy), and `schemes`, the number of variants
        """
        if self.perplexity is None:
            return None
        rows = [(row[self.measure], row["perplexity"]) for row in self.rows_for_all]
        known = [pair for pair in rows if None not in pair]
        if len(known) < 3:
            return None
        found = spearmanr(*zip(*known, strict=True))
        return {"spearman": float(found.statistic), "p_value": float(found.pvalue), "schemes": len(known)}

    @property
    def measure(self) -> str:
        """What variants are ranked by: the error of outputs where the store has the weights' norms, else the error."""
        return "error" if bool(self.table["output_error"].isnull().all()) else "output_error"

    def best_first(self) -> list[Record]:
        """One record a variant, the least error first, each with its worst place."""
        rows: list[Record] = []
        for number, row in enumerate(self.rows_for_all):
            values = self.table[self.measure].isel({VARIANT: number})
            worst: dict[str, Any] = {"worst_error": None, "at_layer": None, "at_site": "-"}
            if not bool(values.isnull().all()):
                place = values.isel(values.argmax(...))
                worst = {
                    "worst_error": float(place),
                    "at_layer": int(place[LAYER]),
                    "at_site": str(place[SITE].values),
                }
            shown = {name: row[name] for name in (*KEYS, "bits", "error", "output_error")}
            if self.perplexity is not None:
                shown["perplexity"] = row["perplexity"]
            rows.append({**shown, "kept_fraction": row["kept_share"], **worst})
        return sorted(rows, key=lambda row: np.inf if row[self.measure] is None else row[self.measure])

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        places = self.table.sizes[LAYER] * self.table.sizes[SITE]
        pairs = [
            ("store", self.name),
            (
                "quantised",
                f"norm outputs at {places:,} places, {self.tokens:,} tokens in {self.sequences:,} sequences",
            ),
        ]
        if self.measure == "error":
            pairs.append(("output error", f"unknown: {without_weights(self.table.attrs)}"))
        if self.left_out:
            pairs.append(("left out", f"{self.left_out:,} rows with values that are not finite"))
        if self.perplexity is not None:
            pairs.append(("perplexity", f"{self.perplexity:.5g} without a quantiser"))
        if (rank := self.rank_correlation) is not None:
            told = f"{rank['spearman']:.3f} over {rank['schemes']} schemes, p = {rank['p_value']:.2g}"
            pairs.append(("Spearman's rank correlation", f"{told}: of {self.measure.replace('_', ' ')} and perplexity"))
        return pairs

    def tables(self) -> list[tuple[str, list[Record]]]:
        """The variants, best first."""
        return [("share of the squares that is lost, least first; mean over layers and sites", self.best_first())]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers quantize --json` prints."""
        return {
            "store": self.name,
            "hidden_size": self.hidden_size,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "left_out": self.left_out,
            "rows": jsonable(self.rows()),
            **self._proof(),
        }

    def _proof(self) -> Record:
        if self.perplexity is None:
            return {}
        rank = self.rank_correlation
        return {"perplexity": jsonable(self.perplexity), "rank_correlation": None if rank is None else jsonable(rank)}


def side_by_side(results: Sequence[Quantization]) -> list[Record]:
    """One record a variant with the error of each store in a column of its own, in the order of the first store.

    Parameters
    ----------
    results : of the same variants
    """
    every = [{tuple(row[key] for key in KEYS): row for row in result.best_first()} for result in results]
    labels = _labels([result.name for result in results])
    return [
        {
            **dict(zip(KEYS, variant, strict=True)),
            **{
                f"{label} {result.measure}": rows[variant][result.measure] if variant in rows else None
                for label, result, rows in zip(labels, results, every, strict=True)
            },
        }
        for variant in every[0]
    ]


def _labels(names: Sequence[str]) -> list[str]:
    """Last parts of paths, where these tell the stores apart."""
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    return short if len(set(short)) == len(short) else list(names)
