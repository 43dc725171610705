"""Threads, a cluster of two worker processes and one process in memory agree to the last bit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, OutliersError, find_outliers, layer_metrics, open_store, scheduler, view_peaks
from analyze.cli import main
from analyze.peaks.stream import stream_matrices
from analyze.question.view import View
from tests import builders

NAMES = ("layer_high", "layer_low", "position_peak")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


@pytest.mark.exhaustive
def test_distributed_equals_threaded_equals_memory(path: Path) -> None:
    pytest.importorskip("distributed")
    view = View(skip_first=1, scale="rms")
    threaded = view_peaks(open_store(path), view, use_cache=False)
    memory = view_peaks(builders.dataset(builders.random_activations()), view)
    measures = layer_metrics(path)
    damaged = path / "norm_output" / "c.1.0.0.0.0"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    with scheduler(workers=2):
        processes = {process for *_, process in stream_matrices(open_store(path), View(), lambda _: os.getpid())}
        assert processes
        assert os.getpid() not in processes
        distributed = view_peaks(open_store(path), view, use_cache=False)
        assert measures.identical(layer_metrics(path))
        rechunked = open_store(path).chunk({"layer": 3, "feature": 2, "position": 4})
        user = view_peaks(rechunked, view, use_cache=False)
        with pytest.raises(OutliersError, match="norm_output is damaged at sequence 1"):
            find_outliers(path, Criteria(signal="output", skip_first=1))
    for name in NAMES:
        for other in (memory, distributed, user):
            np.testing.assert_array_equal(threaded[name].values, other[name].values, err_msg=name)


@pytest.mark.exhaustive
def test_damage_that_a_worker_meets_is_one_line(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    damaged = path / "norm_output" / "c.1.0.0.0.0"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    assert main(["find", str(path), "--signal", "output", "--skip-first", "1", "--workers", "2"]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("reading activations: ")]
    assert len(told) == 1
    assert "norm_output is damaged at sequence 1" in told[0]


@pytest.mark.exhaustive
def test_workers_leave_interrupts_to_the_process_that_started_them() -> None:
    distributed = pytest.importorskip("distributed")
    with scheduler(workers=2):
        heard = distributed.Client.current().run(lambda: signal.getsignal(signal.SIGINT) is not signal.SIG_IGN)
    assert list(heard.values()) == [False, False]
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


@pytest.mark.exhaustive
def test_a_running_scheduler_is_used(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        assert main(["find", str(path), "--skip-first", "1", "--scheduler", cluster.scheduler_address]) == 0
    assert "outliers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "tcp://localhost:1", "workers": 2}, "both --scheduler and --workers are given"),
        ({"workers": 0}, "workers is 0; expected 1 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(OutliersError, match=message), scheduler(**settings):
        pass


def test_a_scheduler_without_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OutliersError, match=r"pip install 'outlier-features\[distributed\]'"), scheduler(workers=1):
        pass


@pytest.mark.exhaustive
@pytest.mark.parametrize("address", ["nonsense://x", "tcp://no-such-host.invalid:1"])
def test_a_scheduler_that_does_not_answer_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda *args, **options: client(*args, **{**options, "timeout": "1s"}))
    with pytest.raises(OutliersError, match="no scheduler answers at"), scheduler(address):
        pass
    # What follows runs on threads again, and does not wait for whom nobody reached.
    assert layer_metrics(builders.dataset(builders.random_activations()))["kurtosis"].shape == (4, 2)


@pytest.mark.parametrize("settings", [{"workers": 1}, {"address": "tcp://host:1"}])
def test_a_worker_that_ends_again_and_again_is_one_line(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")

    class StandIn:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def close(self) -> None:
            pass

        def run(self, function: object) -> None:
            pass

        as_current = contextlib.nullcontext

    monkeypatch.setattr(distributed, "LocalCluster", StandIn)
    monkeypatch.setattr(distributed, "Client", StandIn)
    with (
        pytest.raises(OutliersError, match="ended again and again .*; use fewer --workers"),
        scheduler(**settings),
    ):
        raise distributed.KilledWorker("peaks", None, 3)
