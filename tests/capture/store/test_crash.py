"""Captures that are killed, run out of disk, or share a store: nothing that counts is lost, and the end is the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.exhaustive

from capture.errors import OutliersError  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.store import shards  # noqa: E402
from capture.store.verify import verify  # noqa: E402
from tests.capture.test_run import assert_same_capture  # noqa: E402

SEQUENCES = 10


@pytest.fixture(scope="module")
def processes() -> Any:
    """Fresh processes that have the libraries imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "transformers.models.auto.tokenization_auto",
            "transformers.models.llama.modeling_llama",
            "capture.sites.facts",
            "capture.pipeline",
            "capture.trace",
            "tests.capture.store.test_crash",
        ]
    )
    return context


def work(model: str, out: str, text: str, part: tuple[int, int], fatal_call: int) -> None:
    """A capture in a process of its own, which dies at its `fatal_call`-th system call of the writer, where not 0."""
    torch.set_num_threads(1)
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == fatal_call:
                os._exit(9)
            return call(*args, **options)

        return wrapped

    for name in ("fsync", "replace", "rename", "open"):
        setattr(shards.os, name, counted(getattr(os, name)))
    capture(model, out, text=text, sequences=SEQUENCES, length=8, batch_size=2, part=part)


@pytest.fixture
def start(processes: Any, checkpoint: Path, text_file: Path) -> Iterator[Callable[..., Any]]:
    started = []

    def begin(out: Path, part: tuple[int, int] = (1, 1), fatal_call: int = 0) -> Any:
        process = processes.Process(target=work, args=(str(checkpoint), str(out), str(text_file), part, fatal_call))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def whole(checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a capture that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "s.zarr"
    return capture(str(checkpoint), out, text=str(text_file), sequences=SEQUENCES, length=8, batch_size=2)


def assert_nothing_that_counts_is_damaged(out: Path) -> int:
    if not out.exists():
        return 0
    result = verify(out)
    assert result.damage == ()
    return result.done


def test_thirty_kills_at_random_moments(start: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    start(tmp_path / "first.zarr").join()  # which also waits for the libraries
    began = time.monotonic()
    start(tmp_path / "timed.zarr").join()
    typical = time.monotonic() - began
    kills, round_ = 0, 0
    done: list[int] = []
    while kills < 30:
        out = tmp_path / f"{round_}.zarr"
        process = start(out)
        process.join(rng.uniform(0.1, typical))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
            done.append(assert_nothing_that_counts_is_damaged(out))
        else:
            assert_same_capture(out, whole)
            round_ += 1
    assert any(0 < count < SEQUENCES for count in done), "no kill hit the middle of a capture"
    out = tmp_path / f"{round_}.zarr"
    process = start(out)
    process.join()
    assert_same_capture(out, whole)
    assert verify(out).damage == ()


@pytest.mark.parametrize("fatal_call", [1, 7, 20, 33, 34, 35, 36, 60, 61, 62, 90, 121])
def test_death_inside_the_writer(start: Callable[..., Any], whole: Path, tmp_path: Path, fatal_call: int) -> None:
    out = tmp_path / "s.zarr"
    process = start(out, fatal_call=fatal_call)
    process.join()
    assert process.exitcode == 9
    assert_nothing_that_counts_is_damaged(out)
    process = start(out)
    process.join()
    assert process.exitcode == 0
    assert_same_capture(out, whole)


def test_parts_in_real_processes_one_of_them_killed(start: Callable[..., Any], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    running = [start(out, part=(part, 3)) for part in (1, 2, 3)]
    time.sleep(0.7)
    running[1].kill()
    for process in running:
        process.join()
    again = [start(out, part=(part, 3)) for part in (1, 2, 3)]
    for process in again:
        process.join()
        assert process.exitcode == 0
    assert_same_capture(out, whole)
    assert verify(out).damage == ()


def test_a_disk_that_fills_up_in_mid_run(
    checkpoint: Path, text_file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        out = disk / "s.zarr"
        with monkeypatch.context() as patch:
            patch.setattr("capture.run.check_free_space", lambda *_: None)  # or it is refused before it begins
            with pytest.raises(OutliersError, match="no space left .* sequences are safe"):
                capture(str(checkpoint), out, text=str(text_file), sequences=SEQUENCES, length=8, batch_size=2)
        safe = assert_nothing_that_counts_is_damaged(out)
        assert 0 < safe < SEQUENCES
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        capture(str(checkpoint), out, text=str(text_file), sequences=SEQUENCES, length=8, batch_size=2)
        assert_same_capture(out, whole)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
