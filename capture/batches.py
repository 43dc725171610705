"""Batches of sequences through the model and to the disk: one is traced while those before it become durable."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from capture.models.load import Loaded
from capture.models.placement import input_device
from capture.pipeline import BEHIND, Pipeline, widen, writing_threads
from capture.progress import Reporter
from capture.store.schema import RAW_VARIABLES
from capture.store.write import SequenceWriter, StoreWriter
from capture.trace import Batch, trace_batch

if TYPE_CHECKING:
    import torch

    from capture.models.load import Loaded
    from capture.sites.place import SiteMap


def equal_batches(mine: Sequence[int], length: npt.NDArray[np.int32], batch_size: int) -> list[list[int]]:
    """Sequences that go through the model together: equally long ones, so that nothing is padded for any of them.

    A padded sequence would be another one to convolutions and linear attention, whatever an attention mask says.

    Parameters
    ----------
    mine : numbers of sequences, ascending
    length : (sequence,) int32
    batch_size : the most in a batch

    Returns
    -------
    batches, ordered by their first sequence
    """
    alike: dict[int, list[int]] = {}
    for number in mine:
        alike.setdefault(int(length[number]), []).append(number)
    parts = [
        group[begin : begin + batch_size] for group in alike.values() for begin in range(0, len(group), batch_size)
    ]
    return sorted(parts)


class NonfiniteError(Exception):
    """A batch has values that are not finite, and its peaks were taken as if it had none."""


class BatchWriter:
    """The sequences of one batch on their way to the disk.

    Parameters
    ----------
    store, pipeline : where the values go, and through what
    numbers : the sequences of the batch; those that are captured already are not written again
    done : which are
    """

    def __init__(
        self, store: StoreWriter, pipeline: Pipeline, numbers: Sequence[int], done: npt.NDArray[np.bool_]
    ) -> None:
        self._store, self._pipeline = store, pipeline
        self.numbers = numbers
        self._rows = [row for row, number in enumerate(numbers) if not done[number]]
        self._writers: dict[int, SequenceWriter] = {}
        self._writes: list[Future[None]] = []
        self.begin()

    def begin(self) -> None:
        """Begin, or begin again: whatever is there of these sequences is replaced."""
        self.discard()
        self._writers = {row: self._store.sequence(self.numbers[row]) for row in self._rows}
        self._writes = []

    def sink(self, name: str, layer: int, site: int, values: torch.Tensor) -> None:
        """Take the (sequence, position, feature) tensor of one site."""
        for row, writer in self._writers.items():
            write = functools.partial(writer.append, name, layer=layer, site=site)
            self._writes.append(self._pipeline.submit(values[row], write))

    def take(self, batch: Batch, *, careful: bool) -> None:
        """Take what the trace kept of all sites; `careful` says whether it passed over NaN."""
        carry, submit = self._pipeline.carry, self._pipeline.submit
        for row, writer in self._writers.items():
            self._writes += [
                carry(batch.extremes[row], functools.partial(_keep_extremes, writer, "layer", careful)),
                carry(batch.final_extremes[row], functools.partial(_keep_extremes, writer, "final", careful)),
                carry(batch.nonfinite_count[row], functools.partial(_keep, writer, "nonfinite_count")),
                carry(batch.nll[row], functools.partial(_keep, writer, "nll")),
            ]
            for signal, peak in enumerate(batch.position_peaks):
                self._writes.append(submit(peak[row], functools.partial(writer.keep_peak, signal=signal)))

    def finish(self, reporter: Reporter, before: Future[None] | None = None) -> None:
        """Wait for all of it, then make each sequence durable and set its `done`.

        Parameters
        ----------
        before : the batch before this one, which has ended. Where it failed, this one does not count either.

        Raises
        ------
        NonfiniteError
            The batch has to be traced again, carefully; nothing of it counts.
        """
        if before is not None and not isinstance(failure := before.exception(), NonfiniteError | None):
            raise failure
        wait(self._writes)  # for all, so that no thread still writes when a failure has the files removed
        for write in self._writes:
            write.result()
        for row, writer in self._writers.items():
            writer.finish()
            number = self.numbers[row]
            reporter.advance(1, int(self._store.length[number]), self._store.sequence_bytes(number))

    def discard(self) -> None:
        """Remove what is not durable."""
        for writer in self._writers.values():
            writer.discard()


def _keep(writer: SequenceWriter, name: str, values: torch.Tensor) -> None:
    writer.keep(name, values.numpy())


def _keep_extremes(writer: SequenceWriter, of: str, careful: bool, extremes: torch.Tensor) -> None:
    """Keep `layer_low` and `layer_high` of one sequence, (signal, 2, layer, site, feature), or those of `final`."""
    values = widen(extremes)
    if not careful and not np.isfinite(values).all():
        raise NonfiniteError
    for kind, name in enumerate((f"{of}_low", f"{of}_high")):
        writer.keep(name, values[:, kind] if of == "layer" else values[kind])


class _Loop:
    """What batches have in common.

    Parameters
    ----------
    careful : trace carefully (`capture.trace.Peaks`) from the first batch on. Otherwise the first batch that turns out
        to have values that are not finite is traced again, and it and all that follow carefully.
    """

    def __init__(self, loaded: Loaded, placed: SiteMap, store: StoreWriter, pipeline: Pipeline, careful: bool) -> None:
        self._loaded, self._placed, self._store, self._pipeline = loaded, placed, store, pipeline
        self._careful = careful
        self._wanted = frozenset(RAW_VARIABLES[store.raw])

    def trace(self, writer: BatchWriter) -> None:
        """Have a batch computed, and its values on their way to the disk."""
        ids = self._store.token_id[list(writer.numbers), : self._store.length[writer.numbers[0]]]
        careful = self._careful
        batch = trace_batch(self._loaded.traced, self._placed, ids, writer.sink, self._wanted, careful=careful)
        writer.take(batch, careful=careful)
        self._pipeline.flush()

    def settled(self, writer: BatchWriter, finishing: Future[None]) -> bool:
        """Wait until a batch is durable; where its peaks turn out to be wrong, trace it again, to be finished anew."""
        try:
            finishing.result()
        except NonfiniteError:
            self._careful = True
            writer.begin()
            self.trace(writer)
            return False
        return True


def capture_sequences(
    loaded: Loaded, placed: SiteMap, store: StoreWriter, mine: Sequence[int], batch_size: int, reporter: Reporter
) -> None:
    """Capture what is not captured yet of some sequences.

    Parameters
    ----------
    loaded, placed : the model, and where it is read
    store : where to write
    mine : which sequences
    batch_size : sequences that go through the model together, at the most
    reporter : is told of the progress
    """
    done = store.done()
    # A batch that was half done runs whole again: which sequences go through the model together must not depend on
    # where a capture was interrupted, for the last bits of the values can.
    batches = [batch for batch in equal_batches(mine, store.length, batch_size) if not done[batch].all()]
    reporter.start(len(mine), int(done[list(mine)].sum()))
    device = input_device(loaded.model).type
    current: deque[BatchWriter] = deque()
    try:
        # Sequences are made durable beside the next forward passes, `BEHIND` batches behind and no further.
        with (
            Pipeline(
                store.compression, writing_threads(device), positions=store.sizes.positions, in_rounds=device == "cpu"
            ) as pipeline,
            ThreadPoolExecutor(1) as finisher,
        ):
            loop = _Loop(loaded, placed, store, pipeline, asks_at_each_site(device))
            finishing: deque[Future[None]] = deque()
            for numbers in [*batches, *[None] * BEHIND]:
                if numbers is not None:
                    current.append(BatchWriter(store, pipeline, numbers, done))
                    loop.trace(current[-1])
                    before = finishing[-1] if finishing else None
                    finishing.append(finisher.submit(current[-1].finish, reporter, before))
                if finishing and (numbers is None or len(finishing) > BEHIND):
                    if not loop.settled(current[0], finishing.popleft()):
                        finisher.submit(current[0].finish, reporter).result()
                    current.popleft()
    finally:
        for writer in current:
            writer.discard()


def asks_at_each_site(device: str) -> bool:
    """Whether traces are careful from the first: on a CPU, where asking costs nothing."""
    return device == "cpu"
