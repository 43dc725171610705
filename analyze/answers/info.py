"""What a store holds, finished or not."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analyze.answers.facts import losses
from analyze.display.shown import Shown
from analyze.display.text import jsonable, plain, size
from analyze.peaks.counted import lengths
from analyze.reading.lazy import loaded
from analyze.reading.open import open_store
from capture.request import Request
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SIGNALS, SITE, Sizes


@dataclass(frozen=True)
class Info(Shown):
    """Facts of a store.

    Parameters
    ----------
    format_version : version of the store's format
    complete : whether every sequence is captured
    sequences, done : sequences planned and captured
    layers, positions, features : lengths of the dimensions
    tokens : positions of all sequences together
    shortest : positions of the shortest sequence
    sites : names of the sites
    raw : which activations are kept
    perplexity : exp of the mean negative log-likelihood of the captured sequences; NaN if unknown
    nonfinite : number of NaN and infinite values of each signal
    bytes : size on disk; None where a server does not say at little cost
    attributes : all attributes as captured
    """

    format_version: int
    complete: bool
    sequences: int
    done: int
    layers: int
    sites: tuple[str, ...]
    positions: int
    tokens: int
    shortest: int
    features: int
    raw: str
    perplexity: float
    nonfinite: dict[str, int]
    bytes: int | None
    attributes: dict[str, Any]

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader, without the attributes."""
        unfinished = f"unfinished: {self.done} of {self.sequences} sequences are done; "
        rows = [
            (
                "capture",
                "complete"
                if self.complete
                else unfinished + "run the same outliers capture command again to finish it",
            ),
            ("format version", str(self.format_version)),
            (
                "sequences",
                f"{self.sequences:,} of {self.positions:,} positions"
                if self.shortest == self.positions
                else f"{self.sequences:,} of {self.shortest:,} to {self.positions:,} positions, {self.tokens:,} in all",
            ),
            ("layers", f"{self.layers} with sites {', '.join(self.sites)}"),
            ("features", f"{self.features:,}"),
            ("activations kept", self.raw),
            ("perplexity", "unknown" if math.isnan(self.perplexity) else f"{self.perplexity:.2f}"),
            ("size on disk", "unknown" if self.bytes is None else size(self.bytes)),
        ]
        return rows + [(f"not finite, {name}", f"{count:,} values") for name, count in self.nonfinite.items() if count]

    def rows(self) -> list[dict[str, Any]]:
        """Attributes that are worth a line: without those that are null, or told by `summary`, or a table."""
        told = ("format", "format_version", "raw", "sites")
        return [
            {"attribute": name, "value": plain(value)}
            for name, value in self.attributes.items()
            if value is not None and name not in told
        ]

    def to_command(self, out: str = "again.zarr") -> str:
        """The command line that captures the same again, quoted for a shell.

        Raises
        ------
        OutliersError
            The store does not say enough.
        """
        sizes = Sizes(self.sequences, self.layers, self.sites, self.positions, self.features)
        request = Request.of_store(self.attributes, sizes)
        return shlex.join(["outliers", "capture", request.model, *request.to_words(), "--out", out])

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers info --json` prints: strict JSON."""
        result: dict[str, Any] = jsonable(vars(self))
        return result


def store_info(path: Path | str) -> Info:
    """Facts of a store, also of one whose capture is unfinished.

    Parameters
    ----------
    path : what `open_store` takes, but for a Dataset

    Raises
    ------
    OutliersError
        As `open_store`, save that an unfinished capture is welcome.
    """
    store = open_store(path, partial=True)
    done = loaded(store["done"])
    captured = np.flatnonzero(done)
    # Only captured sequences are read: of the others there is nothing on disk.
    counts = np.zeros(len(SIGNALS), np.int64)
    nll = np.empty(0)
    if len(captured):
        part = store["nonfinite_count"].isel(sequence=captured)
        counts = loaded(part.sum(dim=(SEQUENCE, LAYER, SITE), dtype=np.int64))
        nll = np.concatenate(losses(store, captured.tolist()))
    each = lengths(store)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(nll.mean())) if nll.size else math.nan
    return Info(
        format_version=int(store.attrs["format_version"]),
        complete=bool(done.all()),
        sequences=int(done.size),
        done=len(captured),
        layers=store.sizes[LAYER],
        sites=tuple(str(site) for site in store[SITE].values),
        positions=store.sizes[POSITION],
        tokens=int(each.sum()),
        shortest=int(each.min()),
        features=store.sizes[FEATURE],
        raw=str(store.attrs["raw"]),
        perplexity=perplexity,
        nonfinite={name: int(n) for name, n in zip(SIGNALS, counts, strict=True)},
        bytes=store.encoding["location"].size(),
        attributes=dict(store.attrs),
    )
