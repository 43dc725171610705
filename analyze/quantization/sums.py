"""What `quantize` adds up over the sequences of a view, kept in the user's cache: one file for each variant."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
import xarray as xr

from analyze.peaks import cache
from analyze.question.view import View
from analyze.types import Float64

WHOLE: Final = ""
"""Label of the sums of the matrices themselves, beside those of what variants lose."""
_VERSION: Final = 2  # raised whenever the same question is answered otherwise, or kept otherwise
_LABEL: Final = "label"
_DIGITS: Final = 16


@dataclass
class Sums:
    """Sums over the sequences of a view, each (layer, site) float64.

    Parameters
    ----------
    plain : squares of what a variant loses, or of the matrices themselves
    weighted : the same, weighted by the squares of the weights' norms
    kept : shares of columns that are kept in 16 bits
    left_out : rows with a value that is not finite; of the matrices alone, else 0
    """

    plain: Float64
    weighted: Float64
    kept: Float64
    left_out: Float64


@dataclass(frozen=True)
class KeptSums:
    """The sums of a view that the cache has.

    Parameters
    ----------
    store : Dataset from `open_store`
    key : what the names of files start with; None where nothing can be kept of the Dataset
    shape : numbers of layers and sites
    """

    store: xr.Dataset
    key: str | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, store: xr.Dataset, view: View, shape: tuple[int, int], *, use_cache: bool = True) -> KeptSums:
        """Those of a resolved view."""
        return cls(store, cache.cache_key(store, view, "quantize", _VERSION) if use_cache else None, shape)

    def read(self, label: str) -> Sums | None:
        """Sums of a `Variant.label`, or of `WHOLE`; None where there are none, or not whole."""
        found = None if self.key is None else self._read(self._name(label))
        return None if found is None else found[1]

    def read_all(self) -> dict[str, Sums]:
        """Everything that is kept, by label; empty where `WHOLE` is not, without which nothing can be told."""
        names = [] if self.key is None else cache.names(f"{self.key}-")
        found = dict(pair for name in names if (pair := self._read(name)) is not None)
        return found if WHOLE in found else {}

    def write(self, label: str, sums: Sums) -> None:
        """Keep the sums of a label where that is possible."""
        if self.key is not None:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **{_LABEL: np.array(label)}, **vars(sums))
            cache.write_bytes(self.store, self._name(label), content.getvalue())

    def _name(self, label: str) -> str:
        return f"{self.key}-{sha256(label.encode()).hexdigest()[:_DIGITS]}.npz"

    def _read(self, name: str) -> tuple[str, Sums] | None:
        content = cache.read_bytes(name)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                label, parts = str(file[_LABEL]), [file[part] for part in Sums.__dataclass_fields__]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        whole = name == self._name(label) and all(part.shape == self.shape for part in parts)
        return (label, Sums(*parts)) if whole else None
