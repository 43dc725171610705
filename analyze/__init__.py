"""Outlier-feature questions answered from a captured store, on a CPU, without torch.

>>> import analyze
>>> store = analyze.open_store("smollm2.zarr")  # doctest: +SKIP
>>> analyze.find_outliers(store, analyze.Criteria.preset("study"))  # doctest: +SKIP

The public names and where they live are listed in `__init__.pyi`, and there alone; each is imported at first use.
"""

import lazy_loader

from analyze.registration import register_accessor

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_accessor()
