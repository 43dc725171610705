"""A store that takes another's place: whichever moment it dies in, one of them is there, and nothing else goes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from capture.errors import OutliersError
from capture.store.members import contents
from capture.store.replace import remove_store, settle, take_place
from capture.store.verify import verify
from tests import builders


def stores(folder: Path) -> tuple[Path, Path]:
    """An old store, and a new one that is to take its place."""
    out, new = folder / "s.zarr", folder / "s.zarr.successor"
    builders.on_disk(out, np.ones((1, 1, 2, 3, 4)))
    builders.on_disk(new, np.ones((2, 1, 2, 3, 4)))
    return out, new


def test_the_new_store_takes_the_place(tmp_path: Path) -> None:
    out, new = stores(tmp_path)
    (out / "ablation").mkdir()
    (out / "ablation" / "1234.json").write_text("{}")
    (out / ".views").mkdir()
    (out / "nll" / ".c.0.0.1234.partial").write_text("half")
    take_place(new, out)
    assert verify(out).sequences == 2
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 8])
def test_death_at_any_step_leaves_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    out, new = stores(tmp_path)
    count = iter(range(1, 100))
    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):

            def dying(*args: object, real: object = getattr(os, name), **options: object) -> None:
                if next(count) == call:
                    raise KeyboardInterrupt
                real(*args, **options)  # type: ignore[operator]

            patch.setattr(os, name, dying)
        with pytest.raises(KeyboardInterrupt):
            take_place(new, out)
    settle(out)
    assert verify(out).damage == ()
    assert verify(out).sequences == (1 if call <= 2 else 2)
    assert {path.name for path in tmp_path.iterdir()} == ({out.name, new.name} if call <= 2 else {out.name})


def test_what_turns_up_meanwhile_is_kept(tmp_path: Path) -> None:
    out, new = stores(tmp_path)
    (out / "nll" / "mine.csv").write_text("mine")
    (out / "other.zarr").mkdir()
    with pytest.raises(OutliersError, match="holds files that are no store's"):
        take_place(new, out)
    assert verify(out).sequences == 2
    assert (tmp_path / ".s.zarr.replaced" / "nll" / "mine.csv").read_text() == "mine"


def test_a_link_in_a_store_is_removed_and_not_followed(tmp_path: Path) -> None:
    out, _ = stores(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    (out / "nll").rename(elsewhere)
    (out / "nll").symlink_to(elsewhere)
    before = sorted(os.listdir(elsewhere))
    remove_store(out)
    assert not out.exists()
    assert sorted(os.listdir(elsewhere)) == before


def test_what_lies_in_a_store_by_kind(tmp_path: Path) -> None:
    out, _ = stores(tmp_path)
    assert contents(out).strangers == contents(out).leftovers == []
    for name in ("notes.txt", "nll/c.x", "nll/deep/c.0", "ablation/.d.partial", "ablation/x.json", "c.0", ".views/a"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("")
    found = contents(out)
    assert found.leftovers == [".views", "ablation/.d.partial"]
    assert found.strangers == ["c.0", "nll/c.x", "nll/deep/", "notes.txt"]
    assert "ablation/x.json" in found.members
