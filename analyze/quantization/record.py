"""What a store's model predicted with quantised activations, read back: the file's form and its checks.

A record lies beside the captured data, in `quantization/KEY.json` of the store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import xarray as xr

from analyze.answers.records import read_record, refuse_foreign, sealed, unsealed
from analyze.peaks.cache import as_opened
from analyze.peaks.counted import lengths
from analyze.quantization.errors import label_key
from analyze.question.view import View
from capture.errors import OutliersError
from capture.store.identity import store_id
from capture.store.schema import QUANTIZATION

_FORMAT: Final = "outlier-features quantization"
_VERSION: Final = 1
_COMMAND: Final = "quantize --perplexity"
PLAIN: Final = ""
"""Label of the model as it is."""


@dataclass(frozen=True)
class Predictions:
    """Losses of a store's model as it is and with what its sublayers read quantised, all places of a view together.

    Parameters
    ----------
    view : which sequences were run, and at which layers and sites values were quantised
    tokens : number of predicted tokens of each sequence
    nll : for each `Variant.label`, and for `PLAIN`, the summed negative log-likelihood of each sequence in nats
    attributes : circumstances: model, dtype, device, versions
    """

    view: View
    tokens: tuple[int, ...]
    nll: Mapping[str, tuple[float, ...]] = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)

    def perplexity(self, label: str) -> float:
        """Exp of the mean negative log-likelihood over all predicted tokens; infinite or NaN where that is."""
        mean = math.fsum(self.nll[label]) / sum(self.tokens) if all(map(math.isfinite, self.nll[label])) else math.nan
        return math.exp(mean) if mean < 700 else math.inf if mean >= 700 else math.nan

    @property
    def key(self) -> str:
        """Name of the file that it is kept in."""
        return record_key(self.view)

    def dump(self) -> str:
        """Text of the file that `load` reads; null for a loss that is not finite."""
        nll = {
            label: [value if math.isfinite(value) else None for value in values] for label, values in self.nll.items()
        }
        return sealed(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "view": json.loads(json.dumps(asdict(self.view))),
                "tokens": list(self.tokens),
                "nll": nll,
                "attributes": dict(self.attributes),
            }
        )

    @classmethod
    def load(cls, text: str) -> Self:
        """Read what `dump` wrote.

        Raises
        ------
        ValueError
            The text is not, to the last bit, what `dump` wrote, or does not hang together.
        """
        content = unsealed(text, _FORMAT, _VERSION)
        try:
            found = cls(
                View(**content["view"]),
                tuple(int(count) for count in content["tokens"]),
                {
                    _checked(label): tuple(math.nan if value is None else float(value) for value in values)
                    for label, values in content["nll"].items()
                },
                dict(content["attributes"]),
            )
        except (KeyError, TypeError, AttributeError, OutliersError) as error:
            raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
        counts = {len(values) for values in found.nll.values()}
        if counts != {len(found.tokens)} or sum(found.tokens) < 1 or PLAIN not in found.nll:
            raise ValueError("its parts do not fit together")
        return found


def _checked(label: str) -> str:
    """A label, where it is one."""
    if label != PLAIN:
        label_key(label)
    return label


def record_key(view: View) -> str:
    """Name of the file, without its suffix, with what was predicted for a view."""
    return sha256(json.dumps(asdict(view), sort_keys=True).encode()).hexdigest()[:16]


def record_file(store: Path, view: View) -> Path:
    """Where the record of a view is kept in the folder of a store."""
    return store / QUANTIZATION / f"{record_key(view)}.json"


def own_predictions(store: xr.Dataset, view: View) -> Predictions | None:
    """What is kept beside a store for a view.

    Parameters
    ----------
    store : Dataset from `open_store`; nothing is kept for one that was changed since
    view : resolved

    Returns
    -------
    None where nothing is kept, or the store is no folder

    Raises
    ------
    OutliersError
        The record cannot be read, is damaged or of a newer release, or is that of another store, view or text.
    """
    file = record_file(Path(str(store.encoding.get("source"))), view)
    if not as_opened(store) or not file.is_file():
        return None
    found = read_record(file, Predictions.load, _COMMAND)
    chosen = lengths(store) if view.sequences is None else lengths(store)[list(view.sequences)]
    own = store_id(store.attrs), view, tuple((chosen - 1).tolist())
    refuse_foreign(file, (store_id(found.attributes), found.view, found.tokens), own, _COMMAND)
    return found
