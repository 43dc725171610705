"""Batches of sequences through the model and to the disk."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from capture.models.load import Loaded
from capture.models.placement import input_device
from capture.pipeline import Pipeline, writing_threads
from capture.progress import Reporter
from capture.sites.place import SiteMap
from capture.store.schema import RAW_VARIABLES
from capture.store.write import StoreWriter
from capture.trace import Batch, trace_batch


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


class BatchWriter:
    """The sequences of one batch on their way to the disk.

    Parameters
    ----------
    store, pipeline : where the activations go, and through what
    numbers : the sequences of the batch; those that are captured already are not written again
    """

    def __init__(
        self, store: StoreWriter, pipeline: Pipeline, numbers: Sequence[int], done: npt.NDArray[np.bool_]
    ) -> None:
        self._store, self._pipeline = store, pipeline
        self._numbers = numbers
        self._writers = {row: store.sequence(number) for row, number in enumerate(numbers) if not done[number]}
        self._writes: list[Future[None]] = []

    def sink(self, name: str, layer: int, site: int, values: Any) -> None:
        """Take the (sequence, position, feature) tensor of one site."""
        for row, writer in self._writers.items():
            write = functools.partial(writer.append, name, layer=layer, site=site)
            self._writes.append(self._pipeline.submit(values[row], write))

    def finish(self, batch: Batch, reporter: Reporter) -> None:
        """Wait for the activations, then make each sequence durable and set its `done`."""
        for write in self._writes:
            write.result()
        for row, writer in self._writers.items():
            writer.finish(batch.sequence(row))
            number = self._numbers[row]
            reporter.advance(1, int(self._store.length[number]), self._store.sequence_bytes(number))

    def discard(self) -> None:
        """Remove what is not durable."""
        for writer in self._writers.values():
            writer.discard()


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
    wanted = frozenset(RAW_VARIABLES[store.raw])
    device = input_device(loaded.model).type
    current: list[BatchWriter] = []
    try:
        # Sequences are made durable beside the next batch's forward pass, one batch behind it and no further.
        with (
            Pipeline(
                store.compression, writing_threads(device), positions=store.sizes.positions, in_rounds=device == "cpu"
            ) as pipeline,
            ThreadPoolExecutor(1) as finisher,
        ):
            finishing: Future[None] | None = None
            for numbers in batches:
                ids = store.token_id[numbers, : store.length[numbers[0]]]
                writer = BatchWriter(store, pipeline, numbers, done)
                current = [*current[-1:], writer]
                batch = trace_batch(loaded.traced, placed, ids, writer.sink, wanted)
                pipeline.flush()
                if finishing is not None:
                    finishing.result()
                finishing = finisher.submit(writer.finish, batch, reporter)
            if finishing is not None:
                finishing.result()
    finally:
        for writer in current:
            writer.discard()
