"""A store in xarray's own words: the accessor `Dataset.outliers`, registered when `analyze` is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr

from capture.errors import OutliersError
from capture.store.schema import (
    FEATURE,
    FORMAT,
    LAYER,
    OPTIONAL,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SIGNAL,
    SIGNALS,
    SITE,
    VARIABLES,
    refuse_newer,
    stored_variables,
)

if TYPE_CHECKING:
    from analyze.answers.find import Outliers
    from analyze.answers.null import Null
    from analyze.answers.sweep import Sweep
    from analyze.portraits.map import FeatureMap
    from analyze.portraits.portrait import Portrait
    from analyze.portraits.walk import Walk
    from analyze.question.criteria import Criteria

_REMEDY: Final = "choose parts by layer_range, sites, sequences and skip_first"


@xr.register_dataset_accessor("outliers")  # type: ignore[no-untyped-call]
class OutliersAccessor:
    """Questions to a store that xarray opened.

    >>> import analyze, xarray
    >>> store = xarray.open_zarr("smollm2.zarr")  # doctest: +SKIP
    >>> store.outliers.find(magnitude=50, skip_first=1)  # doctest: +SKIP

    Every method takes the settings of `Criteria` as keywords, and `preset`. Choose sequences, layers and positions by
    these, not by `isel`: the stored peaks of a layer are taken over all positions, and those of a position over all
    layers. A part of the sequences is a store of its own, whose sequences are numbered anew.

    A Dataset that plain xarray opened has not the checks of `analyze.open_store`: zarr reads a chunk whose file is
    missing as NaN, silently (a flipped bit is an error in either), and results of streaming passes are not kept. The
    Dataset of `open_store` has this accessor as well.

    Parameters
    ----------
    dataset : opened by `xarray.open_zarr` or `analyze.open_store`

    Raises
    ------
    OutliersError
        By each method: the Dataset is no store or only part of one, its capture is unfinished, or a setting is wrong.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def find(self, *, preset: str | None = None, **settings: Any) -> Outliers:
        """Outlier features at one threshold: `analyze.find_outliers`."""
        from analyze.answers.find import find_outliers

        return find_outliers(checked(self._dataset), _criteria(preset, settings))

    def critical_magnitudes(self, *, preset: str | None = None, **settings: Any) -> xr.DataArray:
        """Largest magnitude at which each feature is an outlier: `analyze.critical_magnitudes`."""
        from analyze.answers.find import critical_magnitudes

        return critical_magnitudes(checked(self._dataset), _criteria(preset, settings))

    def sweep(
        self,
        magnitude: float | Iterable[float] | None = None,
        layers: float | Iterable[float] | None = None,
        positions: float | Iterable[float] | None = None,
        *,
        preset: str | None = None,
        **settings: Any,
    ) -> Sweep:
        """Counts for every combination of thresholds, each one number or several: `analyze.sweep`."""
        from analyze.answers.sweep import sweep

        thresholds = [None if t is None else _numbers(t) for t in (magnitude, layers, positions)]
        return sweep(checked(self._dataset), _criteria(preset, settings), *thresholds)

    def metrics(self, **settings: Any) -> xr.Dataset:
        """Measures of every layer and site: `analyze.layer_metrics`; takes the settings of `View`."""
        from analyze.answers.metrics import layer_metrics
        from analyze.question.view import View

        return layer_metrics(checked(self._dataset), View(**settings))

    def null(self, *, repeats: int = 20, seed: int = 0, preset: str | None = None, **settings: Any) -> Null:
        """What the criterion finds by chance: `analyze.permutation_null`."""
        from analyze.answers.null import permutation_null

        return permutation_null(checked(self._dataset), _criteria(preset, settings), repeats=repeats, seed=seed)

    def portrait(
        self, feature: int, *, sequence: int | None = None, preset: str | None = None, **settings: Any
    ) -> Portrait:
        """Where one feature is extreme: `analyze.portrait`."""
        from analyze.portraits.portrait import portrait

        return portrait(checked(self._dataset), feature, _criteria(preset, settings), sequence=sequence)

    def map(self, *, top: int = 20, preset: str | None = None, **settings: Any) -> FeatureMap:
        """The strongest features by layers: `analyze.feature_map`."""
        from analyze.portraits.map import feature_map

        return feature_map(checked(self._dataset), _criteria(preset, settings), top=top)

    def walk(self, feature: int, **settings: Any) -> Walk:
        """The residual stream through one sublayer: `analyze.walk`; takes its keywords."""
        from analyze.portraits.walk import walk

        return walk(checked(self._dataset), feature, **settings)


def checked(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset itself where it is a whole, finished store.

    Raises
    ------
    OutliersError
        It is not.
    """
    from analyze.reading.lazy import loaded

    attributes = dataset.attrs
    version = attributes.get("format_version")
    if attributes.get("format") != FORMAT or type(version) is not int:
        raise OutliersError(
            f"this Dataset is no store of {FORMAT}; expected one that outliers capture made, with its attributes"
        )
    refuse_newer("this store", version)
    # Activations may be dropped, and what needs them says so; everything else must be there.
    optional = {*RAW_VARIABLES["both"], *OPTIONAL}
    missing = [name for name in stored_variables("none") if name not in dataset]
    if missing:
        raise OutliersError(f"this Dataset has no variable {', '.join(missing)}; expected a whole store")
    for name in (*stored_variables("none"), *(name for name in optional if name in dataset)):
        expected = VARIABLES[name]
        if dataset[name].dims != expected.dims or dataset[name].dtype != np.dtype(expected.dtype):
            found = f"{dataset[name].dtype} ({', '.join(map(str, dataset[name].dims))})"
            raise OutliersError(f"{name} is {found}; expected {expected.dtype} ({', '.join(expected.dims)})")
    if SITE not in dataset.coords or tuple(map(str, dataset[SIGNAL].values)) != SIGNALS:
        raise OutliersError(f"this Dataset lacks its coordinates {SIGNAL} and {SITE}; expected a whole store")
    empty = [str(dim) for dim, size in dataset.sizes.items() if size == 0]
    if empty:
        raise OutliersError(f"dimension {', '.join(empty)} is empty; expected a whole store")
    for dim, name in ((LAYER, "layers"), (FEATURE, "hidden_size")):
        if name in attributes and attributes[name] != dataset.sizes[dim]:
            raise _part(dim, attributes[name], dataset.sizes[dim])
    for dim in (LAYER, POSITION, FEATURE):
        if dim in dataset.coords and not np.array_equal(dataset[dim].values, np.arange(dataset.sizes[dim])):
            raise _part(dim, max(int(dataset[dim].values.max()) + 1, dataset.sizes[dim]), dataset.sizes[dim])
    done = loaded(dataset["done"])
    if not done.all():
        raise OutliersError(
            f"the capture is unfinished, {int(done.sum())} of {done.size} sequences are done; run the same outliers "
            "capture command again, and it goes on where it stopped"
        )
    if not _whole(dataset):
        raise OutliersError(
            "this Dataset is a part of its store: its first position has a predecessor, or its stored peaks of layers "
            f"and of positions contradict each other; expected the whole store: {_REMEDY}"
        )
    return dataset


def _whole(dataset: xr.Dataset) -> bool:
    """Whether positions begin with the first, and features are as large over layers and sites as over positions.

    Plain xarray numbers nothing, so that a slice of sites or positions shows by nothing else. One sequence is read.
    """
    from analyze.reading.lazy import loaded

    peaks = dataset[["layer_high", "layer_low", "position_peak"]].isel({SIGNAL: 0, SEQUENCE: 0})
    high, low, by_position = (loaded(peaks[name]) for name in ("layer_high", "layer_low", "position_peak"))
    by_layer = np.fmax.reduce(np.fmax(np.abs(high), np.abs(low)), axis=(0, 1))
    first = loaded(dataset["nll"].isel({SEQUENCE: 0, POSITION: 0}))  # NaN: nothing before it predicts it
    return bool(np.isnan(first)) and np.array_equal(by_layer, np.fmax.reduce(by_position, axis=0), equal_nan=True)


def _part(dim: str, whole: int, size: int) -> OutliersError:
    return OutliersError(
        f"this Dataset has {size} of the {whole} {dim}s of its store, or not in their order, and its stored peaks are "
        f"over all of them; expected the whole store: {_REMEDY}"
    )


def _criteria(preset: str | None, settings: dict[str, Any]) -> Criteria:
    from analyze.question.criteria import Criteria

    return Criteria.preset(preset, **settings)


def _numbers(values: float | Iterable[float]) -> list[float]:
    return list(values) if isinstance(values, Iterable) else [values]
