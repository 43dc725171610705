"""Which store it is, and what binds its values to it: a random name, and a digest of each variable of each sequence.

Checksums tell that a chunk is as somebody wrote it, not that it was written here: whole files can be swapped between
sequences and stores. A digest takes in the names of store, variable and sequence beside the checksums.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.store.schema import DIGESTED

STORE_ID: Final = "store_id"
"""Attribute: 32 hexadecimal digits, drawn when the store is created. The oldest stores have none."""


def new_store_id() -> str:
    """A name that no other store has."""
    return secrets.token_hex(16)


def store_id(attributes: Mapping[str, Any]) -> str | None:
    """Name of a store from its attributes; None where it has none."""
    found = attributes.get(STORE_ID)
    return found if isinstance(found, str) else None


def digest(store: str, variable: str, sequence: int, checksums: Iterable[bytes]) -> int:
    """What the store says of one variable of one sequence.

    Parameters
    ----------
    store : its `store_id`
    variable, sequence : which
    checksums : four bytes behind each chunk of the sequence, the chunks in C order of their places

    Returns
    -------
    first 8 bytes, little-endian, of the SHA-256 of `store variable sequence`, a zero byte, and the checksums
    """
    text = f"{store} {variable} {sequence}\0".encode()
    return int.from_bytes(sha256(text + b"".join(checksums)).digest()[:8], "little")


def digest_row(store: str, sequence: int, checksums: Mapping[str, Iterable[bytes]]) -> npt.NDArray[np.uint64]:
    """The sequence's part of the variable `digest`, (variable,) uint64; 0 for variables without checksums."""
    return np.array(
        [digest(store, name, sequence, checksums[name]) if name in checksums else 0 for name in DIGESTED], np.uint64
    )
