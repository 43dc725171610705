"""One command in a process of its own: what it says, how it ends, and that it never stays behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from capture.recipes import process
from capture.recipes.process import StepError, run_outliers

SCRIPT = """
import os, signal, sys, time
sys.stdout.write("progress\\n"); sys.stdout.flush()
how = sys.argv[1]
if how == "refuse":
    print("outliers: waiting 3 s", "progress", "outliers: no such model", sep="\\n", file=sys.stderr)
    sys.exit(2)
if how == "mute": os.close(1); os._exit(2)
if how == "break": print("Traceback", "ValueError: x", sep="\\n", file=sys.stderr); sys.exit(1)
if how == "die": os.kill(os.getpid(), signal.SIGKILL)
if how == "interrupted": sys.exit(130)
if how == "folder": print(os.getcwd())
if how == "stubborn": signal.signal(signal.SIGINT, signal.SIG_IGN)
if how in ("sleep", "stubborn"): print(os.getpid(), flush=True); time.sleep(60)
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_OUTLIERS", (sys.executable, "-S", "-c", SCRIPT))


def run(how: str, folder: Path, output: io.TextIOWrapper | None = None) -> tuple[list[str], str]:
    told: list[str] = []
    log = io.StringIO()
    try:
        run_outliers([how], folder, log, told.append, output)
    except StepError as error:
        told.append(str(error))
    return told, log.getvalue()


def test_what_it_says_is_told_and_logged(tmp_path: Path) -> None:
    told, log = run("folder", tmp_path)
    assert told == ["  progress", f"  {tmp_path.resolve()}"]
    assert log == f"$ outliers folder\nprogress\n{tmp_path.resolve()}\n"


def test_what_it_prints_can_be_kept_apart(tmp_path: Path) -> None:
    with (tmp_path / "f.txt").open("w") as output:
        told, _ = run("folder", tmp_path, output)
    assert told == []
    assert (tmp_path / "f.txt").read_text() == f"progress\n{tmp_path.resolve()}\n"


def test_a_refusal_is_its_last_line(tmp_path: Path) -> None:
    """And a line of the same kind before it is told like any other."""
    told, log = run("refuse", tmp_path)
    assert told == ["  progress", "  outliers: waiting 3 s", "  progress", "no such model"]
    assert log.endswith("outliers: no such model\n")


def test_a_refusal_without_a_word_is_told(tmp_path: Path) -> None:
    with (tmp_path / "f.txt").open("w") as output:
        assert run("mute", tmp_path, output)[0] == ["mute failed without a word; see the log"]


def test_a_bug_and_a_kill_are_told_as_such(tmp_path: Path) -> None:
    assert run("break", tmp_path)[0][-1] == (
        "break broke with exit code 1: ValueError: x; this is a bug, please report it with the log"
    )
    assert run("die", tmp_path)[0][-1] == "die was ended by SIGKILL, most likely for want of memory"


def test_an_interrupted_command_interrupts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("interrupted", tmp_path)


@pytest.mark.parametrize("how", ["sleep", "stubborn"])
def test_it_does_not_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(process, "_GRACE", 0.3)
    seen: list[str] = []

    def tell(line: str) -> None:
        seen.append(line.strip())
        if seen[-1].isdecimal():
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_outliers([how], tmp_path, io.StringIO(), tell)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen[-1]), 0)


def test_sigterm_is_taken_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        process.terminate_like_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


WATCHED = """
import os, signal, sys, time
from capture.recipes import process
process._GRACE = 0.5
process.end_with_starter()
how = sys.argv[1]
if how == "stubborn": signal.signal(signal.SIGINT, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""

STARTER = """
import pathlib, sys
from capture.recipes import process
process._OUTLIERS = (sys.executable, "-c", {watched!r})
process.run_outliers([sys.argv[1]], pathlib.Path("."), open("log", "w"), lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("how", ["sleep", "stubborn"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_it_does_not_outlive_a_starter_that_is_killed(tmp_path: Path, how: str, number: signal.Signals) -> None:
    code = STARTER.format(watched=WATCHED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, "-c", code, how]
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        os.kill(child, 0)
        starter.send_signal(number)
        starter.wait()
    for _ in range(200):
        if not running(child):
            break
        time.sleep(0.1)
    assert not running(child)


def running(number: int) -> bool:
    """Whether a process runs; one that ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
