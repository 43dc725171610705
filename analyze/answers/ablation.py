"""What `outliers ablate` found out, read back: the file's form, its checks, and the figures that papers print.

A record lies beside the captured data, in `ablation/KEY.json` of the store. It is JSON, written in one canonical way
and with the SHA-256 of its own content, so that no flipped bit passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from analyze.answers.records import read_record, refuse_foreign, sealed, unsealed
from analyze.display.shown import Shown
from analyze.display.text import jsonable
from analyze.question.criteria import Criteria
from analyze.types import Counts, Float64
from capture.errors import OutliersError
from capture.store.identity import STORE_ID, store_id
from capture.store.location import Folder
from capture.store.metadata import read_metadata
from capture.store.paths import user_path
from capture.store.schema import ABLATION

SITE_CHOICES: Final = ("ln_attn", "ln_mlp", "both")
_FORMAT: Final = "outlier-features ablation"
_VERSION: Final = 1
_INTERVAL: Final = (0.025, 0.975)
_LISTED: Final = 12  # features that a line of text names


@dataclass(frozen=True)
class Ablation(Shown):
    """One causal test: a model with its outlier features, without them, and without as many random others.

    The first dimension of the arrays is the variant: 0 the model as it is, 1 without the outlier features, from 2 on
    without the random ones of each repeat.

    Parameters
    ----------
    criteria : which features are outliers
    site : `ln_attn`, `ln_mlp` or `both`: the sublayers from whose input features were taken
    features : the outlier features
    random_features : those of each repeat, as many
    hidden_size : width of the model
    positions : tokens in each sequence, the most where they differ; the first sequences of the store were run
    seed : where the randomness of the control starts
    top1 : (variant, sequence, layer), mean over heads and queries of the largest attention probability, the features
        taken away in that layer alone; NaN where a layer has no softmax attention, or `site` leaves attention as it is
    next_top1 : (variant, sequence), mean over positions of the largest probability of a next token, the features taken
        away in all layers together
    nll : (variant, sequence), mean negative log-likelihood over positions >= 1 in nats, likewise
    attributes : circumstances: model, dtype, device, versions, time, command
    lengths : (sequence,) int64, tokens in each sequence where they differ; None where all have `positions`
    """

    criteria: Criteria
    site: str
    features: tuple[int, ...]
    random_features: tuple[tuple[int, ...], ...]
    hidden_size: int
    positions: int
    seed: int
    top1: Float64 = field(repr=False)
    next_top1: Float64 = field(repr=False)
    nll: Float64 = field(repr=False)
    attributes: Mapping[str, Any] = field(repr=False)
    lengths: Counts | None = field(default=None, repr=False)

    @property
    def sequences(self) -> int:
        """How many sequences of the store were run."""
        return int(self.nll.shape[1])

    @property
    def repeats(self) -> int:
        """How many times random features were drawn."""
        return len(self.random_features)

    @property
    def layer_top1(self) -> Float64:
        """(variant, layer): `top1` averaged over sequences."""
        return np.asarray(self.top1.mean(axis=1))

    @property
    def perplexities(self) -> Float64:
        """(variant,): exp of the mean negative log-likelihood over all sequences, as for the store itself."""
        with np.errstate(over="ignore"):
            if self.lengths is None:
                return np.asarray(np.exp(self.nll.mean(axis=1)))
            return np.asarray(np.exp(np.average(self.nll, axis=1, weights=self.lengths - 1)))

    def row(self) -> dict[str, float]:
        """The figures that papers print.

        Returns
        -------
        `top1_with`, `top1_without`, `top1_random`: means over layers of the attention's top-1 probability, a fraction;
        `perplexity`, `perplexity_without`, `perplexity_random`; `next_top1`, `next_top1_without`, `next_top1_random`.
        `_random` is the mean over repeats, `_random_low` and `_random_high` are the 2.5% and 97.5% quantiles of the
        repeats: an interval in which a draw falls, not one for the mean, and with few repeats close to their range.
        NaN where there is nothing to tell.
        """
        attended = ~np.isnan(self.top1).any(axis=(0, 1))
        top1 = self.layer_top1[:, attended].mean(axis=1) if attended.any() else np.full(len(self.top1), np.nan)
        row: dict[str, float] = {}
        for name, first, values in (
            ("top1", "top1_with", top1),
            ("perplexity", "perplexity", self.perplexities),
            ("next_top1", "next_top1", self.next_top1.mean(axis=1)),
        ):
            low, high = np.quantile(values[2:], _INTERVAL)
            row |= {
                first: float(values[0]),
                f"{name}_without": float(values[1]),
                f"{name}_random": float(values[2:].mean()),
                f"{name}_random_low": float(low),
                f"{name}_random_high": float(high),
            }
        return row

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer: `layer`, and the means over sequences `top1_with`, `top1_without` and `top1_random`."""
        return [
            {
                "layer": layer,
                "top1_with": float(values[0]),
                "top1_without": float(values[1]),
                "top1_random": float(values[2:].mean()),
            }
            for layer, values in enumerate(self.layer_top1.T)
        ]

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The layers that have an attention to show."""
        attended = [row for row in self.rows() if not math.isnan(row["top1_with"])]
        return [("attention top-1, features set to zero in one layer at a time", attended)]

    def to_dict(self) -> dict[str, Any]:
        """The object that `outliers ablate --json` prints: strict JSON, null for what is not a finite number."""
        return {
            **jsonable(self.row()),
            "layers": jsonable(self.rows()),
            "site": self.site,
            "features": list(self.features),
            "hidden_size": self.hidden_size,
            "sequences": self.sequences,
            "positions": self.positions,
            "repeats": self.repeats,
            "seed": self.seed,
            "criteria": self.criteria.to_dict(),
            **({STORE_ID: name} if (name := store_id(self.attributes)) is not None else {}),
        }

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for a reader."""
        row = self.row()
        named = ", ".join(map(str, self.features[:_LISTED])) + (", ..." if len(self.features) > _LISTED else "")
        where = {"ln_attn": "attention", "ln_mlp": "the feed-forward part", "both": "attention and feed-forward"}
        rows = [
            ("criterion", str(self.criteria)),
            ("outlier features", f"{len(self.features)} of {self.hidden_size:,}: {named}"),
            ("set to zero", f"before {where[self.site]}"),
            ("text", f"{self.sequences} x {self.positions:,} tokens"),
            ("control", f"{self.repeats} draws of {len(self.features)} other features, seed {self.seed}"),
        ]
        for title, first, name, form in (
            ("attention top-1, one layer at a time", "top1_with", "top1", "{:.2%}"),
            ("perplexity, all layers together", "perplexity", "perplexity", "{:.5g}"),
            ("next-token top-1, all layers together", "next_top1", "next_top1", "{:.2%}"),
        ):
            if math.isnan(row[first]):
                continue
            told = {key: form.format(row[key]) for key in row if key.startswith((first, name))}
            rows.append(
                (
                    title,
                    f"{told[first]} with outliers, {told[f'{name}_without']} without; without random features "
                    f"{told[f'{name}_random']} ({told[f'{name}_random_low']} to {told[f'{name}_random_high']})",
                )
            )
        return rows

    def dump(self) -> str:
        """Text of the file that `load` reads."""
        arrays = {name: jsonable(getattr(self, name)) for name in ("top1", "next_top1", "nll")}
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "attributes": dict(self.attributes),
            "criteria": self.criteria.to_dict(),
            "site": self.site,
            "features": list(self.features),
            "random_features": [list(row) for row in self.random_features],
            "hidden_size": self.hidden_size,
            "positions": self.positions,
            "seed": self.seed,
            **({} if self.lengths is None else {"lengths": self.lengths.tolist()}),
            **arrays,
        }
        return sealed(content)

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
                criteria=Criteria(**content["criteria"]),
                site=content["site"],
                features=tuple(map(int, content["features"])),
                random_features=tuple(tuple(map(int, row)) for row in content["random_features"]),
                hidden_size=int(content["hidden_size"]),
                positions=int(content["positions"]),
                seed=int(content["seed"]),
                attributes=dict(content["attributes"]),
                lengths=np.array(content["lengths"], np.int64) if "lengths" in content else None,
                **{name: np.array(content[name], np.float64) for name in ("top1", "next_top1", "nll")},
            )
        except (KeyError, TypeError, OutliersError) as error:
            raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
        variants = 2 + found.repeats
        if (
            found.site not in SITE_CHOICES
            or found.repeats < 1
            or not found.features
            or any(len(row) != len(found.features) for row in found.random_features)
            or found.nll.ndim != 2
            or found.top1.ndim != 3
            or 0 in found.top1.shape
            or found.nll.shape != (variants, found.top1.shape[1])
            or found.next_top1.shape != found.nll.shape
            or (found.lengths is not None and (found.lengths.shape != found.nll.shape[1:] or found.lengths.min() < 2))
            or len(found.top1) != variants
        ):
            raise ValueError("its parts do not fit together")
        return found


def read_ablations(store: Path | str) -> list[Ablation]:
    """Read every ablation that is kept beside the data of a store.

    Parameters
    ----------
    store : folder of the store

    Returns
    -------
    those with the fewest features first; empty where none was run

    Raises
    ------
    OutliersError
        A record is damaged, of a newer release, or of another store.
    """
    path = user_path(store)
    folder = path / ABLATION
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith(".")) if folder.is_dir() else []
    found = [read_ablation(file) for file in files]
    if found:
        owner = read_metadata(Folder(path))
        for file, ablation in zip(files, found, strict=True):
            check_owner(file, ablation, owner.attributes, owner.arrays["norm_weight"].shape[-1])
    return sorted(found, key=lambda ablation: (len(ablation.features), ablation.site, str(ablation.criteria)))


def read_ablation(file: Path) -> Ablation:
    """Read one record.

    Raises
    ------
    OutliersError
        It cannot be read, is damaged, or is of a newer release.
    """
    return read_record(file, Ablation.load, "ablate")


def check_owner(file: Path, ablation: Ablation, attributes: Mapping[str, Any], hidden_size: int) -> None:
    """Refuse the record of another store.

    Parameters
    ----------
    file : where the record is
    attributes, hidden_size : of the store that it lies in

    Raises
    ------
    OutliersError
        It is one.
    """
    own = store_id(ablation.attributes), ablation.hidden_size
    refuse_foreign(file, own, (store_id(attributes), hidden_size), "ablate")
