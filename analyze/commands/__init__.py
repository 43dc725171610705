"""The subcommands of the analysis side, one a file: each a thin shell over one public function."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import typer

# In the order that `outliers --help` lists them.
NAMES: Final = (
    "info",
    "find",
    "sweep",
    "metrics",
    "fits",
    "null",
    "compare",
    "transition",
    "trajectory",
    "show",
    "map",
    "walk",
    "pack",
    "unpack",
    "push",
    "export",
    "report",
)


def register(app: typer.Typer) -> None:
    """Mount every subcommand: the function `NAME` of the module `analyze.commands.NAME`."""
    for name in NAMES:
        app.command(name)(getattr(import_module(f"analyze.commands.{name}"), name))
