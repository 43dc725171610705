"""From the device to the disk: a fixed number of host buffers, compressed and written while the model computes."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from capture.store.chunks import encode
from capture.store.lengths import padded

Write = Callable[[bytes], None]


def widen(matrix: torch.Tensor) -> npt.NDArray[np.float32]:
    """The float32 array of the same values; exact for float32, bfloat16 and float16.

    Parameters
    ----------
    matrix : contiguous CPU tensor

    Raises
    ------
    TypeError
        The tensor has another dtype, such as float64, whose values float32 cannot hold.
    """
    if matrix.dtype == torch.bfloat16:  # NumPy has no bfloat16: its bits are the upper half of a float32
        bits = matrix.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    if matrix.dtype in (torch.float16, torch.float32):
        values: npt.NDArray[Any] = matrix.numpy()
        return values.astype(np.float32, copy=False)
    raise TypeError(f"activations of dtype {matrix.dtype} do not fit into float32")


def writing_threads(device: str) -> int:
    """Number of threads for a model on a `torch.device` of this type.

    A model on a CPU stands still while they work, and they take every core; beside a GPU one is left to drive it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores if device == "cpu" else cores - 1))


class Pipeline:
    """Threads that compress and write matrices, and the host buffers that the matrices wait in.

    `submit` copies a matrix into a free one of `HOST_BUFFERS`, waiting for it where the disk is slower than the
    model. Use as a context manager.

    Parameters
    ----------
    compression : as `capture.store.chunks.COMPRESSION`
    threads : number of compressing and writing threads
    positions : rows of a matrix in the store; one with fewer has NaN behind its end. None leaves matrices as they are
    in_rounds : for a model that computes on the same cores. Each of its steps waits for the slowest of its threads, so
        that one thread beside them costs as much as all of them standing still. The buffers then fill before any is
        worked on, and `submit` waits while all threads empty them; the last round needs `flush`. PyTorch's threads spin
        for milliseconds once they have nothing to do, so that few long rounds are better than many.
    """

    def __init__(
        self, compression: str, threads: int, *, positions: int | None = None, in_rounds: bool = False
    ) -> None:
        self._compression, self._positions = compression, positions
        self._in_rounds = in_rounds
        self._round: list[Future[None]] = []
        self._begun = threading.Event()
        if not in_rounds:
            self._begun.set()
        self._free: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
        for _ in range(HOST_BUFFERS):
            self._free.put(None)  # allocated at first use, when shape and dtype are known
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="outliers-write")

    def submit(self, matrix: torch.Tensor, write: Write) -> Future[None]:
        """Copy a (position, feature) matrix off its device and have `write` called with its encoded bytes."""
        if self._in_rounds and self._free.empty():
            self.flush()
        buffer = self._free.get()
        try:
            if buffer is None or buffer.shape != matrix.shape or buffer.dtype != matrix.dtype:
                buffer = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=matrix.is_cuda)
            copied = self._copy_beside(matrix, buffer) if matrix.is_cuda else None
            if copied is None:
                buffer.copy_(matrix)
            future = self._pool.submit(self._work, buffer, copied, write)
        except BaseException:
            self._free.put(None)
            raise
        if self._in_rounds:
            self._round.append(future)
        return future

    def flush(self) -> None:
        """Have the buffers of a round that is not full emptied, and wait for it; without rounds there is none."""
        if self._in_rounds:
            self._begun.set()
            wait(self._round)
            self._round.clear()
            self._begun.clear()

    def _copy_beside(self, matrix: torch.Tensor, buffer: torch.Tensor) -> torch.cuda.Event:
        """Copy from a GPU on a stream of its own, so that the model goes on computing."""
        device = matrix.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        # The model may go on to change the tensor in place. A copy on the device costs microseconds and cannot be
        # overtaken by that change; the slow copy to the host then reads it at leisure.
        private = matrix.clone()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            buffer.copy_(private, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        private.record_stream(stream)
        return copied

    def _work(self, buffer: torch.Tensor, copied: torch.cuda.Event | None, write: Write) -> None:
        try:
            self._begun.wait()
            if copied is not None:
                copied.synchronize()
            matrix = widen(buffer)
            whole = matrix if self._positions is None else padded(matrix, self._positions)
            write(encode(whole, self._compression))
        finally:
            self._free.put(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begun.set()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


MOST_THREADS: Final = 8
"""Compressing and writing threads, at the most."""


HOST_BUFFERS: Final = 2 * MOST_THREADS + 2
"""Host memory for activations, in (position, feature) matrices, whatever the number of layers and sequences."""
