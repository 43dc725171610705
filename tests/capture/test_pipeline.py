"""Widening is exact, memory is bounded, and what goes wrong in a thread is not lost."""

from __future__ import annotations

import threading

import numcodecs
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from capture.pipeline import (  # noqa: E402
    HostBuffers,
    Pipeline,
    host_buffers,
    widen,
)

HOST_BUFFERS = host_buffers(1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_16_bit_value_widens_exactly(dtype: str) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(getattr(torch, dtype)).reshape(256, 256)
    widened = widen(values)
    assert widened.dtype == np.float32
    expected = values.to(torch.float32).numpy()
    np.testing.assert_array_equal(widened, expected)
    np.testing.assert_array_equal(np.signbit(widened), np.signbit(expected))


def test_float32_stays_as_it_is() -> None:
    values = torch.tensor([[1.5, -0.0, torch.inf, 1e-45]])
    np.testing.assert_array_equal(widen(values).view(np.int32), values.numpy().view(np.int32))


def test_float64_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        widen(torch.zeros(2, 2, dtype=torch.float64))


def test_what_is_submitted_is_written_as_it_was_then() -> None:
    written: dict[int, list[bytes]] = {}
    with Pipeline("fast", threads=2) as pipeline:
        matrix = torch.zeros(8, 4)
        futures = []
        for number in range(50):
            matrix.fill_(number)  # the model may change its tensors in place
            futures.append(pipeline.submit(matrix, lambda data, n=number: written.update({n: data})))
        for future in futures:
            future.result()
    for number in range(50):
        decoded = np.frombuffer(numcodecs.blosc.decompress(b"".join(written[number][:-1])), np.float32)
        assert (decoded == number).all()


def test_memory_that_one_batch_needed_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [2400, 16, 64, 8, 16_000, 16_000]  # extremes, counts and losses of a sequence, and two position peaks
    allocated: list[int] = []
    empty = torch.empty

    def counted(size: int, **options: object) -> object:
        allocated.append(size)
        return empty(size, **options)

    rng = np.random.default_rng(0)
    with Pipeline("none", threads=1) as pipeline:
        monkeypatch.setattr(torch, "empty", counted)
        for _ in range(50):
            gates = [threading.Event() for _ in sizes]
            carried = [
                pipeline.carry(torch.zeros(size, dtype=torch.uint8), lambda values, gate=gate: gate.wait() and None)
                for size, gate in zip(sizes, gates, strict=True)
            ]
            for number in rng.permutation(len(sizes)):
                gates[number].set()
            for future in carried:
                future.result()
    assert sorted(allocated) == sorted(sizes)


def test_the_smallest_buffer_that_will_do_is_lent() -> None:
    buffers = HostBuffers(4)
    for size in (30, 10, 20):
        buffers.take_back(buffers.lend(0)[:0].new_empty(size))
    assert [buffers.lend(size).nbytes for size in (11, 1)] == [20, 10]
    assert buffers.lend(31).nbytes == 0  # an empty one is replaced before one that serves others
    assert not buffers.all_lent()
    assert buffers.lend(31).nbytes == 30
    assert buffers.all_lent()


def test_a_slow_disk_holds_the_model_back() -> None:
    gate = threading.Event()
    submitted = threading.Semaphore(0)

    def produce() -> None:
        for _ in range(HOST_BUFFERS + 10):
            pipeline.submit(torch.zeros(2, 2), lambda data: gate.wait() and None)
            submitted.release()

    with Pipeline("none", threads=1) as pipeline:
        producer = threading.Thread(target=produce)
        producer.start()
        for _ in range(HOST_BUFFERS):
            assert submitted.acquire(timeout=10)
        assert not submitted.acquire(timeout=0.3)
        gate.set()
        producer.join(10)
        assert not producer.is_alive()


def test_a_round_is_worked_on_only_once_its_buffers_are_full() -> None:
    written: list[int] = []
    with Pipeline("none", threads=1, in_rounds=True) as pipeline:
        counts = []
        for number in range(2 * HOST_BUFFERS + 1):
            pipeline.submit(torch.zeros(2, 2), lambda data, n=number: written.append(n))
            counts.append(len(written))
        assert counts == [0] * HOST_BUFFERS + [HOST_BUFFERS] * HOST_BUFFERS + [2 * HOST_BUFFERS]
        pipeline.flush()
        assert written == list(range(2 * HOST_BUFFERS + 1))
        pipeline.submit(torch.zeros(2, 2), lambda data: written.append(2 * HOST_BUFFERS + 1))
        assert len(written) == 2 * HOST_BUFFERS + 1
    assert written == list(range(2 * HOST_BUFFERS + 2))


def test_a_round_waits_for_all_of_it() -> None:
    entered, gate = threading.Semaphore(0), threading.Event()

    def write(data: bytes) -> None:
        entered.release()
        gate.wait()

    with Pipeline("none", threads=2, in_rounds=True) as pipeline:
        for _ in range(6):
            pipeline.submit(torch.zeros(2, 2), write)
        flushing = threading.Thread(target=pipeline.flush)
        flushing.start()
        for _ in range(2):  # both threads are at work
            assert entered.acquire(timeout=10)
        flushing.join(0.2)
        assert flushing.is_alive()
        gate.set()
        flushing.join(10)
        assert not flushing.is_alive()


@pytest.mark.parametrize("in_rounds", [False, True])
def test_leaving_by_an_exception_hangs_nowhere(in_rounds: bool) -> None:
    def interrupted() -> None:
        with Pipeline("none", threads=1, in_rounds=in_rounds) as pipeline:
            pipeline.submit(torch.zeros(2, 2), lambda data: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


@pytest.mark.parametrize("in_rounds", [False, True])
def test_a_failed_write_is_raised_and_frees_its_buffer(in_rounds: bool) -> None:
    def fail(data: bytes) -> None:
        raise OSError("the disk is gone")

    with Pipeline("none", threads=1, in_rounds=in_rounds) as pipeline:
        futures = [pipeline.submit(torch.zeros(2, 2), fail) for _ in range(2 * HOST_BUFFERS)]
        pipeline.flush()
        for future in futures:
            with pytest.raises(OSError, match="the disk is gone"):
                future.result()
