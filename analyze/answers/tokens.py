"""Tokens that carry the largest magnitudes, and those that are worth leaving out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.peaks.lookup import view_peaks
from analyze.question.view import View
from analyze.reading.lazy import loaded
from analyze.reading.open import as_dataset, token_texts
from analyze.types import Store
from capture.store.schema import POSITION, SEQUENCE

OUTLIER_RATIO: Final = 64.0


def extreme_tokens(store: Store, view: View | None = None, count: int = 10) -> list[dict[str, Any]]:
    """Tokens that carry the largest magnitudes of a view, largest first; from peaks alone where the view is plain.

    Parameters
    ----------
    store : path, or Dataset from `open_store` or one that you chunked yourself
    view : which values count; everything, on norm inputs, where None
    count : how many tokens

    Returns
    -------
    list of `sequence`, `position`, `token_id`, `feature`, `magnitude`; one entry a token, at its largest feature; with
    `token_text` where the store keeps the text of tokens

    Raises
    ------
    OutliersError
        As `view_peaks`.
    """
    store = as_dataset(store)
    view = (View() if view is None else view).view.resolve(store)
    peaks = view_peaks(store, view)
    token_id = loaded(view.select(store[["token_id"]])["token_id"])
    texts = token_texts(store)
    found: list[tuple[float, int, int, int]] = []
    for n in range(peaks.sizes[SEQUENCE]):
        magnitudes = loaded(peaks["position_peak"].isel({SEQUENCE: n}))
        rows = np.fmax.reduce(magnitudes, axis=1)
        ranked = np.argsort(-np.nan_to_num(rows, nan=-np.inf), kind="stable")[:count]
        known = [int(p) for p in ranked if not np.isnan(rows[p])]
        found += [(-float(rows[p]), n, p, int(np.nanargmax(magnitudes[p]))) for p in known]
    return [
        {
            "sequence": int(peaks[SEQUENCE].values[n]),
            "position": int(peaks[POSITION].values[p]),
            "token_id": int(token_id[n, p]),
            **({"token_text": texts.get(int(token_id[n, p]), "")} if texts else {}),
            "feature": f,
            "magnitude": -magnitude,
        }
        for magnitude, n, p, f in sorted(found)[:count]
    ]


def outlier_tokens(store: Store, metrics: xr.Dataset) -> list[dict[str, Any]]:
    """Tokens so much larger than the others that a view without them is worth asking for, the largest ratio first.

    A position is an outlier where, before or behind any norm of the view, its largest magnitude is more than 64 times
    the median over the positions of the same sequence of their largest magnitudes.

    Parameters
    ----------
    store : path or Dataset that the metrics are of
    metrics : of `layer_metrics`

    Returns
    -------
    list of `token_id`, `token_text` where the store keeps it, `positions` (with the token, and outliers), `first` (how
    many of these are the first position of their sequence, where any token may be one), `of` (all positions with the
    token that count), and `ratio`, the largest

    Raises
    ------
    OutliersError
        The store cannot be read.

    References
    ----------
    Chen et al. 2024, PrefixQuant, arXiv 2410.05265, whose threshold is 64; they leave the first position aside.
    """
    store = as_dataset(store)
    ratio = metrics["token_ratio"]
    known = ~np.isnan(ratio.values)
    token_id = loaded(store["token_id"])[np.ix_(ratio[SEQUENCE].values, ratio[POSITION].values)]
    outlier = known & (ratio.values > OUTLIER_RATIO)
    texts = token_texts(store)
    rows = []
    for token in np.unique(token_id[outlier]).tolist():
        here = token_id == token
        text = {"token_text": texts.get(token, "")} if texts else {}
        rows.append(
            {
                "token_id": token,
                **text,
                "positions": int(np.count_nonzero(here & outlier)),
                "first": int(np.count_nonzero((here & outlier)[:, ratio[POSITION].values == 0])),
                "of": int(np.count_nonzero(here & known)),
                "ratio": float(ratio.values[here & known].max()),
            }
        )
    return sorted(rows, key=lambda row: (-row["ratio"], row["token_id"]))
