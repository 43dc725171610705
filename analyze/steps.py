"""Step functions of magnitude, kept so that a sweep over other magnitudes reads not even the peaks.

Values of bfloat16 and float16 models have so few bits that the step functions of a pair of fractions fit into a few
megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from analyze.histograms import BINS, bin_values

Float32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HitSteps:
    """Number of hits of outliers as a function of magnitude.

    Parameters
    ----------
    value : (step,) float32, ascending
    hits : (step,) int64, hits at every magnitude above the value before and up to this one; none above the last
    """

    value: Float32
    hits: Counts

    def at(self, limits: Float32) -> Counts:
        """Hits at each limit."""
        return np.append(self.hits, 0)[np.searchsorted(self.value, limits, side="left")]


@dataclass(frozen=True)
class Steps:
    """All that a sweep over magnitudes needs, for one pair of fractions.

    Parameters
    ----------
    critical : (group, feature) float32, critical magnitudes; groups are sequences, or one where pooled
    layer, position : hits of outliers in layer units and at positions
    layer_units, positions : places that a feature could be hit in
    """

    critical: Float32
    layer: HitSteps
    position: HitSteps
    layer_units: int
    positions: int

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The parts as arrays, to be written."""
        return {
            "critical": self.critical,
            "layer_value": self.layer.value,
            "layer_hits": self.layer.hits,
            "position_value": self.position.value,
            "position_hits": self.position.hits,
            "totals": np.array([self.layer_units, self.positions]),
        }

    @classmethod
    def of_arrays(cls, read: Callable[[str], npt.NDArray[np.generic]]) -> Steps:
        """The reverse of `arrays`."""
        units, positions = (int(number) for number in read("totals"))
        kinds = {"value": np.float32, "hits": np.int64}
        layer, position = (
            HitSteps(**{part: read(f"{name}_{part}").astype(kind) for part, kind in kinds.items()})
            for name in ("layer", "position")
        )
        return cls(read("critical").astype(np.float32), layer, position, units, positions)


def hit_steps(counts: Counts) -> HitSteps:
    """Step function of a histogram.

    Parameters
    ----------
    counts : (bin,) int64, as from `histogram`
    """
    used = np.flatnonzero(counts[: len(counts) // 2])  # the other half has the sign bit: -inf, which is no hit
    return HitSteps(bin_values(used * (BINS // len(counts))), np.cumsum(counts[used][::-1])[::-1])
