"""Types that every room shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from capture.errors import OutliersError as OutliersError

Store = xr.Dataset | Path | str
Float32 = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with the number of finished steps and of all steps."""
