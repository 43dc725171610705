"""`outliers info`."""

from __future__ import annotations

from analyze.options import Json, StorePath
from analyze.printing import print_json


def info(store: StorePath, json_: Json = False) -> None:
    """Say what a store holds, and how far its capture is.

    Example: outliers info data/smollm2.zarr
    """
    from analyze.info import store_info

    facts = store_info(store)
    if json_:
        print_json(facts.to_dict())
    else:
        from analyze.tables import print_info

        print_info(facts)
