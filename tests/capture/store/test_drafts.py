"""Drafts: files and folders that appear whole, and what killed writers leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capture.errors import OutliersError
from capture.store.drafts import draft_folder, sweep
from capture.store.files import AtomicFile, write_file

WRITERS = {
    "file": "from capture.store.files import AtomicFile\nfile = AtomicFile(path)\nfile.write(b'half')",
    "folder": "from capture.store.drafts import draft_folder\nopened = draft_folder(path)\n"
    "(opened.__enter__() / 'inside').write_text('half')",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path, kind: str) -> None:
    code = f"import pathlib, sys\npath = pathlib.Path(sys.argv[1])\n{WRITERS[kind]}\nprint('here', flush=True)\ninput()"
    target = tmp_path / "a[1].csv"
    with subprocess.Popen([sys.executable, "-c", code, target], stdin=-1, stdout=-1) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (draft,) = tmp_path.iterdir()
        sweep(tmp_path, target.name)
        assert draft.exists()
        writer.kill()
        writer.wait()
    sweep(tmp_path, "other.csv")
    assert draft.exists()
    write_file(target, b"whole")
    assert list(tmp_path.iterdir()) == [target]


def test_a_sweep_follows_no_link_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".x.1.partial").symlink_to(tmp_path / "kept")
    os.mkfifo(tmp_path / ".x.2.partial")
    (tmp_path / ".x.partial").write_text("no draft's name")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", ".x.1.partial", ".x.2.partial", ".x.partial"}


def test_a_draft_folder_goes_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), draft_folder(tmp_path / "s") as draft:
        (draft / "a").write_text(str(1 // 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "a.html"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutliersError, match=r"cannot write .*a\.html: No space left on device"):
        write_file(target, b"new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_keeps_its_permissions_and_a_link_leads_where_it_did(tmp_path: Path) -> None:
    target, link = tmp_path / "a.csv", tmp_path / "link.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_file(link, b"new")
    assert link.is_symlink()
    assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o640)


def test_a_pipe_takes_the_bytes_as_they_come(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_file(pipe, b"rows")
        assert reader.communicate()[0] == b"rows"
    assert pipe.is_fifo()
    write_file(Path("/dev/null"), b"rows")
    assert not Path("/dev/null").is_file()


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "a") as file:
        file.write(b"1")
        assert [path.name for path in tmp_path.iterdir()] != ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
