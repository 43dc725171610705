"""`outliers info`."""

from __future__ import annotations

from analyze.commands.options import Json, StorePath
from analyze.commands.output import print_or_json


def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds, and how far its capture is.

    Example: outliers info data/smollm2.zarr
    """
    from analyze.answers.info import store_info

    facts = store_info(store)
    print_or_json(facts, json_)
