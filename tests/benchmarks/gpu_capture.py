"""A capture on a GPU beside the forward passes alone, the disk alone and the codec alone. Run where there is one:

    python -m tests.benchmarks.gpu_capture --model random:Qwen/Qwen3-8B --sequences 8 --length 2048

Nothing is fetched. A capture with `--raw none` is to cost little more than the bare passes, and one with norm inputs
little more than the larger of these and of what the disk takes for the same bytes. Timed is the loop over sequences
until all are durable; loading the model, placing the probes and creating the store are once a store. With `--profile
FILE` the loop of a last capture is traced by torch.profiler, to say what bounds it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from capture import batches
from capture.models.load import Loaded, load_model
from capture.pipeline import encoded, writing_threads
from capture.sites.place import find_sites
from capture.store.files import AtomicFile
from capture.store.schema import RAW_VARIABLES
from capture.store.write import StoreWriter
from capture.trace import trace_batch
from tests.benchmarks.captures import bare, captured, synchronise
from tests.benchmarks.table import in_turns

_BLOCK = 16 * 2**20  # bytes that the disk is given at once


def traced(loaded: Loaded, placed: Any, tokens: np.ndarray) -> None:
    """Passes with losses and peaks that stay where they are."""
    for row in tokens:
        trace_batch(
            loaded.traced,
            placed,
            row[None],
            lambda *_: None,
            frozenset(),
            careful=batches.asks_at_each_site(loaded.model.device.type),
        )
    synchronise(loaded)


def written(folder: Path, size: int, files: int) -> None:
    """So many bytes in so many files, written at once and made durable: what the disk takes for a store."""
    data = os.urandom(_BLOCK)

    def write(number: int) -> None:
        with AtomicFile(folder / f"{number}.bin", cached=False) as file:
            for offset in range(0, size // files, _BLOCK):
                file.write_at(offset, [data[: size // files - offset]])

    with ThreadPoolExecutor(files) as pool:
        list(pool.map(write, range(files)))
    for number in range(files):
        (folder / f"{number}.bin").unlink()


def matrices(store: StoreWriter, dtype: torch.dtype) -> list[torch.Tensor]:
    """The raw matrices of the first sequence of a store, in the model's dtype."""
    import zarr

    found = []
    for name in RAW_VARIABLES[store.raw]:
        array: Any = zarr.open_array(store.path / name, mode="r")
        values = torch.from_numpy(np.asarray(array[0])).to(dtype)
        found += list(values.reshape(-1, *values.shape[-2:]))
    return found


def compressed(pool: ThreadPoolExecutor, matrices: list[torch.Tensor], times: int) -> int:
    """Encode matrices and forget them."""
    sizes = pool.map(lambda matrix: sum(map(len, encoded(matrix, "fast"))), matrices * times)
    return sum(sizes)


def main() -> None:
    """Measure in turns and print one table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:Qwen/Qwen3-8B")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--text", default="python-docs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the system's temporary one by default")
    parser.add_argument("--profile", type=Path)
    words = parser.parse_args()
    loaded = load_model(words.model, dtype=words.dtype, device=words.device)
    request = {name: getattr(words, name) for name in ("model", "text", "sequences", "length", "dtype", "device")}
    on_gpu = loaded.model.device.type == "cuda"
    threads = writing_threads(loaded.model.device.type)
    placed = find_sites(loaded.model)
    with tempfile.TemporaryDirectory(dir=words.folder) as name, ThreadPoolExecutor(threads) as pool:
        folder = Path(name)
        captured(loaded, folder / "first.zarr", request, "input")  # warms caches and kernels, and says what is written
        store = StoreWriter(folder / "first.zarr")
        size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
        tokens, first = store.token_id, matrices(store, getattr(torch, words.dtype))
        shutil.rmtree(store.path)
        ways: dict[str, Callable[[], object]] = {
            "bare forward passes with logits": lambda: bare(loaded, tokens),
            "and losses and peaks, left on the device": lambda: traced(loaded, placed, tokens),
            "capture --raw none": lambda: captured(loaded, folder / "none.zarr", request, "none"),
            "capture with norm inputs": lambda: captured(loaded, folder / "input.zarr", request, "input"),
            "the codec alone, on all threads": lambda: compressed(pool, first, words.sequences),
            "the disk alone": lambda: written(folder, size, min(threads, words.sequences)),
        }
        wall, processor = in_turns(words.rounds, *ways.values())
        single = in_turns(words.rounds, lambda: encoded(first[len(first) // 2], "fast"))[0][0]
        device = torch.cuda.get_device_name(loaded.model.device) if on_gpu else "CPU"
        print(
            f"device   {device}; {os.cpu_count()} processor cores, {threads} writing threads; torch {torch.__version__}"
        )
        print(f"request  {words.model}, {words.sequences} x {words.length} tokens, {words.dtype}, batch size 1")
        print(f"\n{'':42} seconds  processor  to bare")
        for what, seconds, used in zip(ways, wall, processor, strict=True):
            print(f"{what:42} {seconds:7.3f}    {used:7.3f}  {seconds / wall[0]:7.2f}")
        values = sum(matrix.nbytes for matrix in first)
        slower = max(wall[0], wall[5])
        print(f"\ncapture --raw none        {wall[2] / wall[0]:.2f} of the bare passes (aim: 1.15)")
        print(f"capture with norm inputs  {wall[3] / slower:.2f} of the slower of passes and disk (aim: 1.3)")
        print(f"bytes                     {size / 1e9:.2f} GB, to the disk at {size / 1e9 / wall[5]:.2f} GB/s alone")
        print(
            f"codec                     {values * words.sequences / 1e9 / wall[4]:.2f} GB/s of {words.dtype} on all "
            f"threads; {1e3 * single:.1f} ms for one matrix of {' x '.join(map(str, first[0].shape))} on one"
        )
        if on_gpu:
            print(f"GPU memory                {torch.cuda.max_memory_allocated(loaded.model.device) / 2**30:.1f} GiB")
        if words.profile is not None:
            with _profiled_loop(words.profile, on_gpu):
                captured(loaded, folder / "profiled.zarr", request, "none")


@contextlib.contextmanager
def _profiled_loop(target: Path, on_gpu: bool) -> Iterator[None]:
    """Have torch.profiler watch the loop over sequences, and nothing before it."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    whole = batches.capture_sequences

    def watched(*words: Any) -> None:
        with profile(activities=activities) as seen:
            whole(*words)
        seen.export_chrome_trace(str(target))
        print(seen.key_averages().table(sort_by="cuda_time_total" if on_gpu else "cpu_time_total", row_limit=25))

    with patch.object(batches, "capture_sequences", watched):
        yield


if __name__ == "__main__":
    main()
