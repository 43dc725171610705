"""A capture on a GPU beside the forward passes alone and beside writing alone. Run where there is one:

    python -m tests.benchmarks.gpu_capture --model random:Qwen/Qwen3-8B --sequences 8 --length 2048

The capture is to cost little more than the slower of the two. With `--profile FILE` a last capture is traced by
torch.profiler, to say what bounds it. Loading the model and placing the probes are left out, as they are once a store.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capture import run
from capture.models.load import Loaded, load_model
from capture.pipeline import Pipeline, writing_threads
from capture.progress import Silence
from capture.store.create import create
from capture.store.schema import PER_SEQUENCE, RAW_VARIABLES
from capture.store.write import StoreWriter
from tests.benchmarks.table import Spent, in_turns


class Clock(Silence):
    """Begins with the loop over sequences."""

    def start(self, total: int, done: int) -> None:
        self.began = time.perf_counter()


def captured(loaded: Loaded, out: Path, request: dict[str, Any]) -> Spent:
    """A capture; what counts is the loop over sequences, until all of them are durable."""
    shutil.rmtree(out, ignore_errors=True)
    kept, clock, used = run.load_model, Clock(), time.process_time()
    run.load_model = lambda *_, **__: loaded
    try:
        run.capture(out=out, reporter=clock, **request)
    finally:
        run.load_model = kept
    return Spent(time.perf_counter() - clock.began, time.process_time() - used)


def bare(loaded: Loaded, tokens: np.ndarray) -> None:
    """Forward passes with logits and nothing else."""
    device = loaded.model.get_input_embeddings().weight.device
    with torch.inference_mode():
        for row in torch.from_numpy(tokens.astype(np.int64)).to(device):
            loaded.model(input_ids=row[None], use_cache=False).logits  # noqa: B018
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Writing:
    """The bytes of a captured store, written again from memory with the same codec and threads.

    Parameters
    ----------
    source : a finished store; its first sequence stands for all, so that memory holds one
    threads : compressing and writing threads
    """

    def __init__(self, source: Path, dtype: torch.dtype, threads: int) -> None:
        self.store, self.threads = StoreWriter(source), threads
        self.matrices: dict[tuple[str, int, int], torch.Tensor] = {}
        for name in RAW_VARIABLES[self.store.raw]:
            values = torch.from_numpy(self._first(name)).to(dtype)
            grid = (1, 1) if name == "final_input" else tuple(values.shape[:2])
            flat = values.reshape(*grid, *values.shape[-2:])
            self.matrices |= {(name, layer, site): flat[layer, site] for layer, site in np.ndindex(*grid)}
        self.small = {name: self._first(name) for name in PER_SEQUENCE}
        self.fixed = {name: self.store.read(name) for name in ("token_id", "norm_weight")}

    def _first(self, name: str) -> np.ndarray:
        import zarr

        array: Any = zarr.open_array(self.store.path / name, mode="r")
        return np.asarray(array[:, 0] if array.metadata.dimension_names[0] == "signal" else array[0])

    def write(self, out: Path) -> None:
        """Write as many sequences as the source has."""
        shutil.rmtree(out, ignore_errors=True)
        create(out, self.store.sizes, raw=self.store.raw, attributes={}, **self.fixed)
        store = StoreWriter(out)
        with Pipeline(store.compression, self.threads) as pipeline:
            for number in range(store.sizes.sequences):
                writer = store.sequence(number)
                writes = [
                    pipeline.submit(matrix, functools.partial(writer.append, name, layer=layer, site=site))
                    for (name, layer, site), matrix in self.matrices.items()
                ]
                for write in writes:
                    write.result()
                writer.finish(self.small)


def main() -> None:
    """Measure and print medians, ratios and the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:Qwen/Qwen3-8B")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", type=Path)
    words = parser.parse_args()
    loaded = load_model(words.model, dtype=words.dtype, device=words.device)
    request = {name: getattr(words, name) for name in ("model", "text", "sequences", "length", "dtype", "device")}
    on_gpu = loaded.model.device.type == "cuda"
    threads = writing_threads(loaded.model.device.type)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "captured.zarr"
        captured(loaded, out, request)  # warms caches and kernels, and says what is written
        writing = Writing(out, getattr(torch, words.dtype), threads)
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        tokens = writing.store.token_id
        (capture, forward, alone), _ = in_turns(
            words.rounds,
            lambda: captured(loaded, Path(folder) / "again.zarr", request),
            lambda: bare(loaded, tokens),
            lambda: writing.write(Path(folder) / "written.zarr"),
        )
        name = torch.cuda.get_device_name(loaded.model.device) if on_gpu else "CPU"
        print(f"device       {name}, {os.cpu_count()} processor cores, {threads} writing threads")
        print(f"request      {words.model}, {words.sequences} x {words.length} tokens, {words.dtype}")
        print(f"written      {size / 1e9:.2f} GB, {size / 1e9 / alone:.2f} GB/s alone")
        print(f"forward      {forward:.2f} s bare, {tokens.size / forward:,.0f} tokens/s")
        print(f"writing      {alone:.2f} s alone")
        print(f"capture      {capture:.2f} s, {capture / max(forward, alone):.2f} of the slower of both (aim: 1.2)")
        if on_gpu:
            print(f"GPU memory   {torch.cuda.max_memory_allocated(loaded.model.device) / 2**30:.1f} GiB at most")
        if words.profile is not None:
            with _profiled(words.profile, on_gpu):
                captured(loaded, Path(folder) / "profiled.zarr", request)


@contextlib.contextmanager
def _profiled(target: Path, on_gpu: bool) -> Any:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as watched:
        yield
    watched.export_chrome_trace(str(target))
    print(watched.key_averages().table(sort_by="cuda_time_total" if on_gpu else "cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
