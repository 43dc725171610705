"""`outliers info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.commands.options import Json, StorePath
from analyze.commands.output import print_json

if TYPE_CHECKING:
    from analyze.answers.info import Info


def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds, and how far its capture is.

    Example: outliers info data/smollm2.zarr
    """
    from analyze.answers.info import store_info

    facts = store_info(store)
    if json_:
        print_json(facts.to_dict())
    else:
        print_info(facts)


def print_info(info: Info) -> None:
    """What a store holds."""
    from analyze.display.tables import print_facts
    from analyze.display.text import plain

    print_facts(info.summary())
    print()
    print_facts([(name, plain(value)) for name, value in info.known.items()])
