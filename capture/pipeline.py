"""From the device to the disk: a fixed number of host buffers, emptied by threads while the model computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch

from capture.store.chunks import encode_pieces, widen_halves
from capture.store.lengths import padded
from capture.store.planes import Piece

BEHIND: Final = 2
"""Batches that become durable while the next one is traced: a GPU is told of that one long before it has computed."""

Write = Callable[[list[Piece]], None]


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
    if matrix.dtype == torch.bfloat16:
        return widen_halves(_halves(matrix))
    if matrix.dtype in (torch.float16, torch.float32):
        values: npt.NDArray[Any] = matrix.numpy()
        return values.astype(np.float32, copy=False)
    raise TypeError(f"activations of dtype {matrix.dtype} do not fit into float32")


def _halves(matrix: torch.Tensor) -> npt.NDArray[np.uint16]:
    """Bits of a bfloat16 tensor, which NumPy does not have: the upper halves of float32."""
    return matrix.view(torch.int16).numpy().view(np.uint16)


def encoded(matrix: torch.Tensor, compression: str, positions: int | None = None) -> list[Piece]:
    """The pieces of the chunk that holds the float32 of a (position, feature) CPU tensor's values; else as `widen`.

    Parameters
    ----------
    positions : rows of the chunk, NaN behind those of the matrix; None for as many
    """
    if positions is not None and positions != len(matrix):
        return encode_pieces(padded(widen(matrix), positions), compression)
    return encode_pieces(_halves(matrix) if matrix.dtype == torch.bfloat16 else widen(matrix), compression)


def writing_threads(device: str) -> int:
    """Number of threads for a model on a `torch.device` of this type.

    A model on a CPU stands still while they work, and they take every core; beside a GPU one is left to drive it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores if device == "cpu" else cores - 1)


def host_buffers(threads: int) -> int:
    """Host memory of a capture, in (position, feature) matrices, whatever the number of layers and sequences.

    Two for each thread, so that one fills while the other is worked on; not too few for long rounds (`Pipeline`).
    """
    return 2 * max(threads, 8) + 2


class HostBuffers:
    """Memory that tensors are copied into: lent, taken back and lent again.

    Memory that a GPU copies into by itself is slow to come by, and its allocation can hold the device up. So what is
    lent is the smallest that will do, and what one batch needed serves the next.

    Parameters
    ----------
    count : how many there are; each begins empty, and its user gives it the size that it lacks
    """

    def __init__(self, count: int) -> None:
        self._idle = [torch.empty(0, dtype=torch.uint8)] * count
        self._returned = threading.Condition()

    def lend(self, size: int) -> torch.Tensor:
        """A uint8 tensor of `size` bytes or more, waited for; where there is none, a smaller one to be replaced."""
        with self._returned:
            self._returned.wait_for(lambda: self._idle)
            sizes = [buffer.nbytes for buffer in self._idle]
            fitting = [held for held in sizes if held >= size]
            # An empty one is no loss; of others, the largest leaves the least memory in all.
            chosen = min(fitting) if fitting else 0 if 0 in sizes else max(sizes)
            # Of several, the one that was used last: a processor may have it in its cache still.
            return self._idle.pop(len(sizes) - 1 - sizes[::-1].index(chosen))

    def take_back(self, buffer: torch.Tensor) -> None:
        """Have one back, or what replaces it."""
        with self._returned:
            self._idle.append(buffer)
            self._returned.notify()

    def all_lent(self) -> bool:
        """Whether the next would be waited for."""
        with self._returned:
            return not self._idle


class Pipeline:
    """Threads that compress and write what a model computed, and the host buffers that it waits in.

    `carry` copies a tensor into a free one of `host_buffers`, waiting for it where the disk is slower than the model.
    Use as a context manager.

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
        self._buffers = HostBuffers(host_buffers(threads))
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="outliers-write")

    def submit(self, matrix: torch.Tensor, write: Write) -> Future[None]:
        """Have `write` called with the encoded pieces of a (position, feature) matrix."""
        return self.carry(matrix, lambda values: write(encoded(values, self._compression, self._positions)))

    def carry(self, values: torch.Tensor, use: Callable[[torch.Tensor], None]) -> Future[None]:
        """Copy a tensor off its device and have a thread call `use` with the copy, which is lent for the call alone."""
        if self._in_rounds and self._buffers.all_lent():
            self.flush()
        buffer = self._buffers.lend(values.nbytes)
        try:
            if buffer.nbytes < values.nbytes:
                buffer = torch.empty(values.nbytes, dtype=torch.uint8, pin_memory=values.is_cuda)
            target = buffer[: values.nbytes].view(values.dtype).view(values.shape)
            copied = self._copy_beside(values, target) if values.is_cuda else None
            if copied is None:
                target.copy_(values)
            future = self._pool.submit(self._work, buffer, target, copied, use)
        except BaseException:
            self._buffers.take_back(buffer)
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

    def _copy_beside(self, values: torch.Tensor, target: torch.Tensor) -> torch.cuda.Event:
        """Copy from a GPU on a stream of its own, so that the model goes on computing."""
        device = values.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        # The model may go on to change the tensor in place. A copy on the device costs microseconds and cannot be
        # overtaken by that change; the slow copy to the host then reads it at leisure.
        private = values.clone(memory_format=torch.contiguous_format)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            target.copy_(private, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)  # a thread that waits sleeps, and hinders no launch
            copied.record(stream)
        private.record_stream(stream)
        return copied

    def _work(
        self,
        buffer: torch.Tensor,
        values: torch.Tensor,
        copied: torch.cuda.Event | None,
        use: Callable[[torch.Tensor], None],
    ) -> None:
        try:
            self._begun.wait()
            if copied is not None:
                copied.synchronize()
            use(values)
        finally:
            self._buffers.take_back(buffer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begun.set()
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
