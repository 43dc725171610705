"""A store replaced: the old one stays where it is until the new one is finished, and nothing but the store goes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from capture.errors import OutliersError
from capture.store.files import sync_folder
from capture.store.members import contents


def successor_path(out: Path) -> Path:
    """Where the store grows that is to replace the one at `out`: beside it, or beside what a link leads to."""
    real = _real(out)
    return real.with_name(f"{real.name}.successor")


def check_replaceable(out: Path) -> None:
    """Refuse to replace a store in whose folder something lies that is not the store's.

    Raises
    ------
    OutliersError
        Something does.
    """
    strangers = contents(out).strangers
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise OutliersError(
            f"{out} holds {strangers[0]}{more}, which is no file of a store, so --overwrite leaves it; "
            "move that away, or choose another --out"
        )


@contextlib.contextmanager
def replacing(out: Path, new: Path) -> Iterator[None]:
    """While the block fills `new`, the old store stays; then `new` takes its place. Where both are one, nothing."""
    if new == out:
        yield
        return
    try:
        yield
    except OutliersError as error:
        begun = f", its successor is {new}" if new.exists() else ""
        raise OutliersError(f"{error}; {out} is still the earlier store{begun}") from error
    take_place(new, out)


def take_place(new: Path, out: Path) -> None:
    """Give a finished store the place of an older one, which goes. A link keeps leading there.

    Raises
    ------
    OutliersError
        Something turned up in the old folder that is not the store's; the new store has its place all the same.
    """
    real = _real(out)
    if os.path.lexists(real):
        os.rename(real, _aside(real))
    os.rename(new, real)
    sync_folder(real.parent)
    settle(out)


def settle(out: Path) -> None:
    """Finish a replacement that was killed between its two renames, or while it removed the old store.

    Raises
    ------
    OutliersError
        As `take_place`.
    """
    real = _real(out)
    aside = _aside(real)
    if not aside.is_dir():
        return
    if not os.path.lexists(real):
        os.rename(aside, real)
        return
    remove_store(aside)
    if aside.exists():
        raise OutliersError(f"{aside} holds files that are no store's; move them away, and remove it")


def remove_store(path: Path) -> None:
    """Remove the files of a store, and its folders as far as nothing else is in them."""
    found = contents(path)
    # The root last: whatever is left of a store that was half removed is known by it.
    for name in sorted((*found.leftovers, *found.members), key=lambda name: name == "zarr.json"):
        file = path / name
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):  # something else is in it
            os.rmdir(folder)


def _real(out: Path) -> Path:
    return Path(os.path.realpath(out))


def _aside(real: Path) -> Path:
    return real.with_name(f".{real.name}.replaced")
