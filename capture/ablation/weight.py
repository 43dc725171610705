"""From a feature to the weight that writes it, and what the model loses without that one weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from analyze.display.shown import Record, Shown
from analyze.display.text import jsonable
from analyze.peaks.counted import lengths
from analyze.portraits.origin import BOTH, Origin, origin
from analyze.question.checks import check_repeats
from analyze.question.view import View
from analyze.reading.lazy import loaded as values_of
from analyze.reading.open import open_store
from analyze.types import Counts, Float64, Progress
from capture.ablation.reload import check_nll, check_norms, reload_model
from capture.errors import OutliersError
from capture.store.paths import user_path
from capture.store.schema import SEQUENCE

if TYPE_CHECKING:
    import torch

    from capture.ablation.maps import LinearMap
    from capture.models.load import Loaded
    from capture.sites.place import Site, SiteMap

SEQUENCES: Final = 4
_POOL: Final = 10  # weights of the nearest magnitudes for each random one that is drawn from among them
_LISTED: Final = 5


@dataclass(frozen=True)
class WrittenWeight(Shown):
    """The weight that writes a feature.

    Parameters
    ----------
    origin : which sublayer writes the feature, and where
    module : path of the sublayer's last linear map
    columns : its strongest terms at that place, each weight * input: `column`, `weight`, `input`, `product`
    returned : what the map returns for the feature there: the sum of all products and the bias
    rank : 1 where no weight of the map has a larger magnitude than the first column's
    weights : number of weights of the map
    random : as many other weights of the map, of magnitudes as near as there are: `row`, `column`, `weight`
    nll : (variant, sequence) mean negative log-likelihood over positions >= 1 in nats: of the model as it is, without
        the weight, and without each of the random ones
    predicted : (sequence,) int64, number of these positions, by which sequences of different lengths count
    """

    origin: Origin
    module: str
    columns: tuple[Record, ...] = field(repr=False)
    returned: float
    rank: int
    weights: int
    random: tuple[Record, ...] = field(repr=False)
    nll: Float64 = field(repr=False)
    predicted: Counts = field(repr=False)

    @property
    def perplexities(self) -> list[float]:
        """Of the model as it is, without the weight, and without each of the random ones; over all positions."""
        with np.errstate(over="ignore"):
            return [float(value) for value in np.exp(np.average(self.nll, axis=1, weights=self.predicted))]

    @property
    def share(self) -> float:
        """Share of the map's return that the strongest column makes."""
        return float(self.columns[0]["product"]) / self.returned if self.returned else math.nan

    def to_dict(self) -> Record:
        """The object that `outliers weight --json` prints: strict JSON."""
        with_, without, *random = map(jsonable, self.perplexities)
        return {
            "feature": self.origin.feature,
            "origin": self.origin.to_dict(),
            "module": self.module,
            "columns": jsonable(self.columns),
            "returned": jsonable(self.returned),
            "share": jsonable(self.share),
            "rank": self.rank,
            "weights": self.weights,
            "random": jsonable(self.random),
            "sequences": self.nll.shape[1],
            "perplexity_with": with_,
            "perplexity_without": without,
            "perplexity_random": random,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        top, first = self.origin.strongest, self.columns[0]
        before, without, *random = self.perplexities
        sizes = [abs(row["weight"]) for row in self.random]
        return [
            ("feature", f"{self.origin.feature}, written by {top['writer']}"),
            ("most at", f"sequence {top['sequence']}, position {top['position']}: {top['contribution']:.6g}"),
            ("last map", f"{self.module}, which returns {self.returned:.6g} there"),
            ("weight", f"[{self.origin.feature}, {first['column']}] = {first['weight']:.6g}, times "
                       f"{first['input']:.6g}: {first['product']:.6g}, {self.share:.1%} of what the map returns"),
            ("its size", f"rank {self.rank:,} of the map's {self.weights:,} weights by magnitude"),
            ("perplexity", f"{before:.4f} as it is, {without:.4f} without the weight"),
            ("random weights", f"{np.mean(random):.4f} ({min(random):.4f} to {max(random):.4f}) without one of "
                               f"{len(random)} of magnitude {min(sizes):.4g} to {max(sizes):.4g}"),
        ]  # fmt: skip

    def rows(self) -> list[Record]:
        """The strongest terms of what the map returns for the feature."""
        return list(self.columns)

    def tables(self) -> list[tuple[str, list[Record]]]:
        """The strongest terms."""
        return [("the strongest terms: weight times input", self.rows())]


def written_weight(
    store: Path | str,
    feature: int,
    *,
    model: str | None = None,
    device: str = "auto",
    sequences: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> WrittenWeight:
    """Find the weight that writes a feature, and run the model without it.

    The store says which sublayer first writes the feature, and where. The model says which column of the sublayer's
    last linear map makes it there: a linear map's return is a sum of weight times input. Then that one weight is zero
    over whole sequences, and after it one random weight at a time, drawn from the ten times as many of the same map
    with the nearest magnitudes.

    Parameters
    ----------
    store : folder or archive of a finished store that keeps norm inputs
    feature : index into the hidden dimension
    model : where the store's model is now, None where it says so itself
    device, trust_remote_code : as for `capture.models.load.load_model`
    sequences : how many of the store's sequences to use, from the first; None for 4, or all where there are fewer
    repeats : number of random weights
    seed : where their randomness starts
    progress : called with (finished, all) passes

    Raises
    ------
    OutliersError
        The feature comes from the embedding, the sublayer ends in no plain linear map, the model cannot be loaded or is
        another.

    References
    ----------
    Yu et al. 2024, The Super Weight in Large Language Models, section 3: the row and column of such a weight are those
    of the spikes in what the map returns and receives.
    """
    dataset = open_store(store)
    captured = dataset.sizes[SEQUENCE]
    sequences = min(SEQUENCES, captured) if sequences is None else sequences
    if not 1 <= sequences <= captured:
        raise OutliersError(f"sequences is {sequences}, and {store} has {captured}; expected 1 to {captured}")
    check_repeats(repeats, seed)
    found = origin(dataset, feature, View(sequences=tuple(range(sequences))))
    top = found.strongest
    if top["layer"] is None:
        raise OutliersError(
            f"feature {feature} comes from {top['writer']}, and no sublayer's weight writes it; choose another feature"
        )
    path = user_path(store)
    loaded, placed = reload_model(path, dataset.attrs, model=model, device=device, trust_remote_code=trust_remote_code)
    check_norms(path, loaded, placed, dataset.attrs, values_of(dataset["norm_weight"]))
    tokens = values_of(dataset["token_id"].isel({SEQUENCE: slice(sequences)}))
    ids = [row[:end] for row, end in zip(tokens, lengths(dataset).tolist(), strict=False)]
    from capture.ablation.maps import last_maps, watched

    maps = last_maps(loaded.model, _writers(placed, top), placed.hidden_size)
    seen = watched(loaded.model, maps, ids[top["sequence"]], top["position"])
    # Of parallel sublayers the one that returns most of the feature.
    chosen = max(range(len(maps)), key=lambda number: abs(float(seen[number][1][feature])))
    written, (received, returned) = maps[chosen], seen[chosen]
    columns = _columns(written.weight[feature].double().cpu(), received)
    place = (feature, columns[0]["column"])
    random, rank = _alike(written.weight, place, repeats, seed)
    cells = [None, place, *((row["row"], row["column"]) for row in random)]
    nll = []
    for number, cell in enumerate(cells):
        losses = _losses(loaded, written, cell, ids)
        if number == 0:
            for row, stored in zip(losses, values_of(dataset["nll"].isel({SEQUENCE: slice(sequences)})), strict=True):
                check_nll(path, loaded, dataset.attrs, stored[None, : row.shape[1]], row)
        nll.append([row[:, 1:].mean(dtype=np.float64) for row in losses])
        if progress is not None:
            progress(number + 1, len(cells))
    return WrittenWeight(
        origin=found,
        module=written.path,
        columns=tuple(columns[:_LISTED]),
        returned=float(returned[feature]),
        rank=rank,
        weights=written.weight.numel(),
        random=tuple(random),
        nll=np.array(nll),
        predicted=np.array([len(row) - 1 for row in ids]),
    )


def _writers(placed: SiteMap, top: Record) -> list[Site]:
    """Sites of the sublayers that add to the stream together."""
    own = [site for site in placed.sites if site.layer == top["layer"]]
    return own if top["writer"].endswith(BOTH) else [site for site in own if site.name == top["site"]]


def _columns(weight: torch.Tensor, received: torch.Tensor) -> list[Record]:
    """The terms of the feature, the largest magnitude first, as many as are listed."""
    products = weight * received
    order = products.abs().argsort(descending=True, stable=True)[:_LISTED].tolist()
    return [
        {
            "column": column,
            "weight": float(weight[column]),
            "input": float(received[column]),
            "product": float(products[column]),
        }
        for column in order
    ]


def _alike(weight: torch.Tensor, place: tuple[int, int], repeats: int, seed: int) -> tuple[list[Record], int]:
    """Random other weights of the nearest magnitudes, and the rank of the weight's own magnitude."""
    magnitudes = weight.abs().float()
    own = magnitudes[place]
    rank = 1 + int((magnitudes > own).sum())
    distance = (magnitudes - own).abs()
    distance[place] = math.inf
    pool = distance.flatten().topk(min(_POOL * repeats, distance.numel() - 1), largest=False).indices.cpu().numpy()
    if repeats > len(pool):
        raise OutliersError(f"repeats is {repeats}; expected {len(pool)} or fewer, for the map has no more weights")
    chosen = np.random.default_rng(seed).choice(np.sort(pool), repeats, replace=False)
    cells = [divmod(int(flat), weight.shape[1]) for flat in chosen]
    return [{"row": row, "column": column, "weight": float(weight[row, column])} for row, column in cells], rank


@contextmanager
def _without(written: LinearMap, cell: tuple[int, int] | None) -> Iterator[None]:
    """One weight is zero."""
    if cell is None:
        yield
        return
    kept = written.weight[cell].clone()
    written.weight[cell] = 0
    try:
        yield
    finally:
        written.weight[cell] = kept


def _losses(
    loaded: Loaded, written: LinearMap, cell: tuple[int, int] | None, ids: list[npt.NDArray[np.int32]]
) -> list[npt.NDArray[np.float32]]:
    """(1, position) negative log-likelihoods in nats of each sequence, NaN at position 0."""
    from capture.ablation.interventions import predictions

    with _without(written, cell):
        return [np.asarray(predictions(loaded.traced, (), row[None], ())[0]) for row in ids]
