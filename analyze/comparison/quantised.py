"""Perplexities under quantisers that `outliers quantize --perplexity` kept beside stores, set beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import xarray as xr

from analyze.comparison.cells import Row
from analyze.display.text import cell, jsonable
from analyze.quantization.quantize import answered
from analyze.question.view import View

TITLE: Final = "Perplexity with quantised norm outputs, least first"
OF_A_VARIANT: Final = (
    *("scheme", "transform", "threshold", "bits"),
    *("error", "output_error", "kept_share", "perplexity"),
)
COLUMNS: Final = ("model", "store", *OF_A_VARIANT, "perplexity_without")


@dataclass(frozen=True)
class Quantised:
    """What the model of a store predicted under quantisers.

    Parameters
    ----------
    model, store : label in the comparison, and path
    perplexity : without a quantiser, on the same sequences
    measure : `error` or `output_error`: what is correlated with the perplexities
    rank_correlation : as `Quantization.rank_correlation`
    rows : one a variant, the least perplexity first; errors are None where `quantize` has not found them here
    """

    model: str
    store: str
    perplexity: float
    measure: str
    rank_correlation: dict[str, float] | None
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON."""
        return {name: jsonable(value) for name, value in vars(self).items()}

    @property
    def records(self) -> list[Row]:
        """The rows, each with the model and its perplexity without a quantiser: what a CSV file has."""
        about = {"model": self.model, "store": self.store}
        return [{**about, **row, "perplexity_without": self.perplexity} for row in self.rows]

    @property
    def shown(self) -> list[dict[str, str]]:
        """The rows for a reader, the model without a quantiser first."""
        plain: Row = {"scheme": "none", "transform": "none", "perplexity": self.perplexity}
        names = [name for name in OF_A_VARIANT if name != "kept_share"]
        return [
            {"Model": self.model, **{name.replace("_", " ").capitalize(): cell(name, row.get(name)) for name in names}}
            for row in (plain, *self.rows)
        ]

    @property
    def note(self) -> str | None:
        """The rank correlation in words."""
        rank = self.rank_correlation
        if rank is None:
            return None
        return (
            f"{self.model}: Spearman's rank correlation of {self.measure.replace('_', ' ')} and perplexity is "
            f"{rank['spearman']:.3f} over {rank['schemes']} schemes, p = {rank['p_value']:.2g}."
        )


def quantised(model: str, store: xr.Dataset, view: View) -> Quantised | None:
    """What is kept beside a store for a view; None where nothing is.

    Parameters
    ----------
    model : label of the store
    store : Dataset from `open_store`
    view : its layers, sites, sequences and positions count

    Raises
    ------
    OutliersError
        The record is damaged or another store's.
    """
    found = answered(store, view)
    if found is None or found.perplexity is None:
        return None
    known = [{name: row[name] for name in OF_A_VARIANT} for row in found.rows_for_all if row["perplexity"] is not None]
    rows = sorted(known, key=lambda row: row["perplexity"])
    return Quantised(model, found.name, found.perplexity, found.measure, found.rank_correlation, tuple(rows))
