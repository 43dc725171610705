"""Seals of what this user computed and keeps on disk, so that nobody else's files, and no flipped bit, become answers.

A store that somebody else made may come with a folder of cached views. A seal is a keyed BLAKE2b digest (RFC 7693) of
the bytes and of what they are; the key is a secret of the user that never leaves the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Final

BYTES: Final = 32
"""Length of a seal."""

_KEY_BYTES: Final = 32


def user_folder() -> Path:
    """The user's cache folder for this tool; `XDG_CACHE_HOME` moves it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "outlier-features"


def seal(data: bytes | memoryview, *what: str | int) -> bytes:
    """Seal of bytes.

    Parameters
    ----------
    data : the bytes
    what : says which bytes they are, so that one sealed thing does not pass for another
    """
    digest = hashlib.blake2b(key=_secret(user_folder()), digest_size=BYTES)
    digest.update("\0".join(map(str, what)).encode() + b"\0\0")
    digest.update(data)
    return digest.digest()


def holds(given: bytes, data: bytes | memoryview, *what: str | int) -> bool:
    """Whether a seal is that of these bytes."""
    return secrets.compare_digest(given, seal(data, *what))


@lru_cache(maxsize=4)
def _secret(folder: Path) -> bytes:
    """The user's secret; one of this process where none can be kept, so that nothing kept by it is believed later."""
    file = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".secret.{secrets.token_hex(4)}.partial"
        try:
            if not file.exists():
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
                    output.write(secrets.token_bytes(_KEY_BYTES))
                os.link(draft, file)  # whole, or another process's
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
        found = file.read_bytes()
        if len(found) == _KEY_BYTES and file.stat().st_uid == os.getuid():
            return found
    except OSError:
        pass
    return secrets.token_bytes(_KEY_BYTES)
