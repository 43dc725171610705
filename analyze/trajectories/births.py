"""When features become outliers, whether they stay it, and how the outliers of one checkpoint pass into the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyze.question.ranks import threshold
from analyze.types import Float32


def births(critical: Float32, steps: Sequence[int], magnitude: float) -> list[dict[str, Any]]:
    """One row for each feature that is an outlier at any checkpoint, the earliest born first.

    Parameters
    ----------
    critical : (step, feature) float32, critical magnitudes
    steps : ascending
    magnitude : threshold

    Returns
    -------
    `feature`; `born`: the first step at which it is an outlier; `after`: the checkpoint before that, None where it is
    one from the first; `checkpoints`: at how many it is one; `lasting`: whether at all from its birth to the last;
    `critical_at_birth`, `critical_at_end` and `largest_critical` over all checkpoints
    """
    present = critical >= threshold(magnitude)
    rows = []
    for feature in np.flatnonzero(present.any(axis=0)):
        own, values = present[:, feature], critical[:, feature]
        first = int(np.argmax(own))
        rows.append(
            {
                "feature": int(feature),
                "born": steps[first],
                "after": None if first == 0 else steps[first - 1],
                "checkpoints": int(np.count_nonzero(own)),
                "lasting": bool(own[first:].all()),
                "critical_at_birth": float(values[first]),
                "critical_at_end": float(values[-1]),
                "largest_critical": float(values.max()),
            }
        )
    return sorted(rows, key=lambda row: (row["born"], -row["largest_critical"], row["feature"]))


def succession(critical: Float32, magnitude: float) -> list[dict[str, int | float | None]]:
    """How the outliers of each checkpoint follow on those of the one before.

    Parameters
    ----------
    critical, magnitude : as for `births`

    Returns
    -------
    one row a checkpoint: `kept`, `new` and `gone` features, None at the first; `strongest_feature`, the one with the
    largest critical magnitude, and `strongest_critical`
    """
    present = critical >= threshold(magnitude)
    rows: list[dict[str, int | float | None]] = []
    for number, now in enumerate(present):
        before = None if number == 0 else present[number - 1]
        strongest = int(np.argmax(critical[number]))
        rows.append(
            {
                "kept": None if before is None else int(np.count_nonzero(now & before)),
                "new": None if before is None else int(np.count_nonzero(now & ~before)),
                "gone": None if before is None else int(np.count_nonzero(before & ~now)),
                "strongest_feature": strongest,
                "strongest_critical": float(critical[number, strongest]),
            }
        )
    return rows
