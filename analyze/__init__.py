"""Outlier-feature questions answered from a captured store, on a CPU, without torch.

>>> import analyze
>>> store = analyze.open_store("smollm2.zarr")  # doctest: +SKIP
>>> analyze.find_outliers(store, analyze.Criteria.preset("study"))  # doctest: +SKIP

The public names and where they live are listed in `__init__.pyi`, and there alone; each is imported at first use.
"""

from importlib import import_module

import lazy_loader
from wrapt import register_post_import_hook

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# `Dataset.outliers` must be there for whoever has imported both, in whichever order; help and TAB do without xarray.
register_post_import_hook(lambda _: import_module("analyze.accessor"), "xarray")
