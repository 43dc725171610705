"""`Dataset.outliers` for whoever has imported `analyze` and xarray, in either order, without importing xarray for it.

xarray takes half a second, which help and TAB do without. A library for such hooks (wrapt) would take a tenth of one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType


# No `MetaPathFinder` by name, for importing `importlib.abc` takes 30 ms.
class _Watch:
    """Lets the others find xarray, and has the accessor registered once xarray is executed; looking is not enough."""

    _asking = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "xarray" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                import_module("analyze.accessor")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_accessor() -> None:
    """Register the accessor now where xarray is imported already, else once it is."""
    if "xarray" in sys.modules:
        import_module("analyze.accessor")
    else:
        sys.meta_path.insert(0, _Watch())
