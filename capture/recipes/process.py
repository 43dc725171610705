"""One `outliers` command in a process of its own, which this one waits for and never leaves behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from capture.store.privacy import without_secrets

# A recipe's folder is the working directory, and nothing in it must be imported: -P keeps it off the path.
_OUTLIERS: Final = (
    *(sys.executable, "-P", "-c"),
    "from capture.recipes.process import end_with_starter; end_with_starter(); "
    "import sys, analyze.cli; sys.argv[0] = 'outliers'; sys.exit(analyze.cli.main())",
)
_WATCHED: Final = "OUTLIERS_STARTER"  # environment variable: descriptor of a pipe that the starter holds open
_GRACE: Final = 30.0  # seconds that a process has to end by itself after an interruption
_COMPLAINT: Final = "outliers: "


class StepError(Exception):
    """A step that did not succeed, told in one line."""


def run_outliers(
    words: Sequence[str], folder: Path, log: IO[str], tell: Callable[[str], None], output: IO[str] | None = None
) -> None:
    """Run one command and wait for it.

    Parameters
    ----------
    words : what follows `outliers`
    folder : working directory
    log : gets the command and all that it says
    tell : takes each line that it says
    output : gets what it prints, apart from what it says on standard error; None to treat both alike

    Raises
    ------
    StepError
        It did not succeed.
    KeyboardInterrupt
        It was interrupted, or this process was; then it has ended all the same.
    """
    log.write(f"$ {shlex.join(['outliers', *without_secrets(words)])}\n")
    log.flush()
    last = complaint = ""
    # However this process ends, the system closes its end of a pipe, which the other one watches.
    watched, held = os.pipe()
    process = subprocess.Popen(
        [*_OUTLIERS, *words],
        pass_fds=[watched],
        env={**os.environ, _WATCHED: str(watched)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT if output is None else subprocess.PIPE,
        text=True,
        errors="replace",
    )
    os.close(watched)
    with contextlib.closing(os.fdopen(held, "wb")), _interruptible(process):
        said = process.stdout if output is None else process.stderr
        assert said is not None
        for line in filter(str.strip, said):
            log.write(line)
            if complaint:
                tell(f"  {complaint}")
            last = line.rstrip()
            # The last one is the reason of a failure, and told as that.
            complaint = last if last.startswith(_COMPLAINT) else ""
            if not complaint:
                tell(f"  {last}")
        code = process.wait()
    log.flush()
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise StepError(_reason(words[0], code, last.removeprefix(_COMPLAINT)))


@contextlib.contextmanager
def _interruptible(process: subprocess.Popen[str]) -> Iterator[None]:
    """Wait for a process; where this one is interrupted, do not leave it behind."""
    with process:
        try:
            yield
        except BaseException:
            # Ctrl-C on a terminal reached it too: let it end in its own way, then ask, then insist.
            for number, grace in ((None, _GRACE / 6), (signal.SIGINT, _GRACE), (signal.SIGKILL, None)):
                if number is not None:
                    process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=grace)
                    break
            raise


def end_with_starter() -> None:
    """End this process, first as Ctrl-C does, once the one that started it is gone, however that ended."""
    descriptor = int(os.environ.pop(_WATCHED))

    def watch() -> None:
        os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _reason(step: str, code: int, said: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        why = ", most likely for want of memory" if code == -signal.SIGKILL else ""
        return f"{step} was ended by {name}{why}"
    if code == 2:
        return said if said else f"{step} failed without a word; see the log"
    return f"{step} broke with exit code {code}: {said}; this is a bug, please report it with the log"


def terminate_like_ctrl_c() -> None:
    """Let a batch system's SIGTERM end the sweep as Ctrl-C does: in order, and its process with it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
