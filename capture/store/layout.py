"""How arrays are cut into chunks, chunks bundled into shards, and sequences into groups and parts."""

from __future__ import annotations

from typing import Any

from capture.store.schema import (
    FEATURE,
    LAYER,
    POSITION,
    RAW_VARIABLES,
    SEQUENCE,
    SIGNAL,
    SITE,
    VARIABLE,
    VARIABLES,
    Sizes,
)

# Small arrays of several sequences share a file, so that a store of a million tokens stays far below 10,000 files.
_MOST_GROUPS = 256
_TOKEN_CHUNK_BYTES = 4 * 2**20

KEYS: Any = {"name": "default", "separator": "."}  # files side by side: one folder to make durable, not a tree


def sequences_per_group(sequences: int) -> int:
    """How many sequences share the shards of the small arrays; the unit that parts are cut by."""
    return -(-sequences // _MOST_GROUPS)


def part_sequences(sequences: int, part: int, parts: int) -> range:
    """Sequences that part `part` of `parts` captures (counted from 1).

    Parts are cut between groups of sequences that share files, so that no two parts write the same file.
    """
    group = sequences_per_group(sequences)
    groups = -(-sequences // group)
    start, stop = (groups * edge // parts * group for edge in (part - 1, part))
    return range(start, min(stop, sequences))


def chunks_and_shards(name: str, sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk shape and shard shape of a variable; no shards for what is written once, at the start."""
    shape = sizes.shape(VARIABLES[name].dims)
    group = sequences_per_group(sizes.sequences)
    if name == "token_id":
        rows = max(1, _TOKEN_CHUNK_BYTES // (4 * sizes.positions))
        return (min(rows, sizes.sequences), sizes.positions), None
    if name == "length":
        return shape, None
    if name == "done":
        return (group,), None
    if SEQUENCE not in VARIABLES[name].dims:
        return shape, None
    together = {FEATURE, POSITION, LAYER, SITE, SIGNAL, VARIABLE}
    if name in RAW_VARIABLES["both"]:
        together, group = {FEATURE, POSITION}, 1
    elif name == "position_peak":
        together = {FEATURE, POSITION}
    lengths = dict(zip(VARIABLES[name].dims, shape, strict=True))
    chunks = tuple(length if dim in together else 1 for dim, length in lengths.items())
    shards = tuple(group if dim == SEQUENCE else length for dim, length in lengths.items())
    return chunks, shards
