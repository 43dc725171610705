"""The documentation's table of architectures is what this run finds.

After a change, write it anew with: UPDATE_DOCS=1 pytest tests/capture/sites/test_architecture_table.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from capture.errors import OutliersError
from capture.sites.place import find_sites
from tests.architectures import ARCHITECTURES

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"

HEAD = """# Architectures

Every row is a tiny model with random weights, built from the real configuration class of transformers. The test suite
places its sites by data flow, compares the placement with one written by hand from the modeling code, with and without
weights, and compares what a capture stores with plain PyTorch hooks, bit for bit, in float32 and in bfloat16. Others
are placed in the same way; `outliers sites MODEL` shows where, from the configuration alone.

`none` is a sublayer that reads the residual stream itself: its norm comes after it.

| model | class | site: module that is read, in the block | kind | last norm | result |
|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """One line of the table, from what the probe finds."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    try:
        found = find_sites(model)
    except OutliersError as error:
        return f"| {name} | {type(model).__name__} | | | | refused: {error} |"
    blocks = architecture.blocks
    places: dict[str, set[str]] = {}
    for site in found.sites:
        places.setdefault(site.name, set()).add(site.module.removeprefix(blocks.format(site.layer) + "."))
    cells = "; ".join(f"{site}: {' or '.join(sorted(modules))}" for site, modules in sorted(places.items()))
    return f"| {name} | {type(model).__name__} | {cells} | {found.kind} | {found.final.module} | placed, bit-equal |"


def test_the_table_is_what_this_run_finds() -> None:
    page = HEAD + "\n".join(row(name) for name in ARCHITECTURES) + "\n"
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page
