"""Drafts: what is written under a hidden name until it is whole, and swept where its writer was killed.

A writer holds a lock on its draft. The system takes the lock back however the writer ends, so that whoever gets it
knows that nobody goes on with the draft.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def hidden(target: Path) -> Path:
    """A new name beside `target` for its draft."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def claim(target: Path, *, folder: bool) -> tuple[Path, int]:
    """Make a draft, an empty file or folder, and lock it.

    Returns
    -------
    path of the draft, and the descriptor that holds the lock; of a file it is open for writing
    """
    while True:
        draft = hidden(target)
        if folder:
            os.mkdir(draft)
        descriptor = os.open(draft, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # Where a file system has no locks, nobody gets one, and no draft is swept.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept = not draft.exists()
        except OSError as error:
            swept = isinstance(error, BlockingIOError)
        if not swept:
            return draft, descriptor
        os.close(descriptor)


@contextlib.contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, to be filled and renamed; what is left of it at the end goes."""
    sweep(target.parent, target.name)
    draft, descriptor = claim(target, folder=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts that killed writers left.

    Parameters
    ----------
    folder : where they are
    name : of the file or folder that was to be; of any where None
    """
    for leftover in folder.glob(".*.*.partial" if name is None else f".{glob.escape(name)}.*.partial"):
        with contextlib.suppress(OSError):  # a link, a pipe, another user's, or locked: somebody writes it
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                elif leftover.is_file():
                    leftover.unlink()
            finally:
                os.close(descriptor)
