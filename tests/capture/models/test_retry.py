"""Rate limits and passing faults of the hub are waited out; everything else is told at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capture.errors import OutliersError
from capture.models import retry as patience
from capture.models.retry import passing_fault, patiently
from capture.progress import Display, Silence
from tests.hub import Hub, connect, serving


class Refused(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"{status}")
        self.response = SimpleNamespace(
            status_code=status, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )


class Told(Silence):
    def __init__(self) -> None:
        self.waits: list[tuple[str, float]] = []

    def wait(self, reason: str, seconds: float) -> None:
        self.waits.append((reason, seconds))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes by sleeping alone; the sleeps."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


class ConnectError(Exception):
    """As httpx names it."""


class NetworkError(Exception):
    """As httpx names it."""


class Unreachable(ConnectError, NetworkError):
    pass


class OfflineModeIsEnabled(ConnectionError):
    """As huggingface_hub names it."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused(429), "429 Too Many Requests"),
        (Refused(503), "503 Service Unavailable"),
        (chained(OSError("We couldn't connect"), Refused(502)), "502 Bad Gateway"),
        (ConnectionResetError("reset by peer\nand more"), "connection failed: reset by peer"),
        (chained(ConnectionError("Server Disconnected"), Refused(504)), "connection failed: Server Disconnected"),
        (TimeoutError(), "connection failed: TimeoutError"),
        (Refused(404), None),
        (Refused(401), None),
        (chained(OSError("no such model"), Refused(403)), None),
        (OSError("no route to host"), None),
        (ValueError("x"), None),
        (OfflineModeIsEnabled("HF_HUB_OFFLINE"), None),
    ],
)
def test_what_may_pass(error: Exception, reason: str | None) -> None:
    fault = passing_fault(error)
    assert (None if fault is None else fault.reason) == reason


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ({"retry_after": "120"}, 120),
        ({"retry_after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({}, None),
    ],
)
def test_what_the_server_asks(headers: dict[str, str], asked: float | None) -> None:
    fault = passing_fault(Refused(429, **headers))
    assert fault is not None
    assert fault.asked == asked


@pytest.mark.parametrize(("ahead", "asked"), [(500, 500), (-50, 0)])
def test_a_server_may_ask_by_date(ahead: float, asked: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
    fault = passing_fault(Refused(429, retry_after=date))
    assert fault is not None
    assert fault.asked == pytest.approx(asked, abs=20)


def failing(*errors: Exception) -> Any:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "served"

    return call


def test_faults_are_waited_out_ever_longer(clock: list[float]) -> None:
    told = Told()
    assert patiently("the model m", failing(*[Refused(500)] * 8), told) == "served"
    for number, seconds in enumerate(clock, 1):
        assert min(60, 2**number) / 2 <= seconds <= min(60, 2**number)
    assert told.waits == [("the model m: 500 Internal Server Error", seconds) for seconds in clock]


def test_never_less_than_the_server_asks(clock: list[float]) -> None:
    assert patiently("m", failing(Refused(429, retry_after="100")), Silence()) == "served"
    assert 100 <= clock[0] <= 101


def test_patience_ends(clock: list[float]) -> None:
    with pytest.raises(OutliersError, match=r"refused the model m in \d+ attempts \(429 Too Many") as caught:
        patiently("the model m", failing(*[Refused(429)] * 1000), Silence())
    assert "\n" not in str(caught.value)
    assert patience.PATIENCE - 60 < sum(clock) <= patience.PATIENCE


def test_a_wait_beyond_all_patience_is_not_begun(clock: list[float]) -> None:
    with pytest.raises(OutliersError, match="asks to wait 86400 s more"):
        patiently("m", failing(Refused(429, retry_after="86400")), Silence())
    assert clock == []


def test_offline_is_told_at_once_and_a_lost_connection_is_not(clock: list[float]) -> None:
    with pytest.raises(Unreachable):
        patiently("m", failing(Unreachable("no route")), Silence(), first_contact=True)
    assert clock == []
    assert patiently("m", failing(Unreachable("no route")), Silence()) == "served"
    assert patiently("m", failing(NetworkError("broken pipe")), Silence(), first_contact=True) == "served"


def test_a_wait_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Display().wait("model m: 429 Too Many Requests", 31.4)
    assert capsys.readouterr().err == (
        "outliers: waiting 31 s for the Hugging Face Hub; model m: 429 Too Many Requests\n"
    )


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The tiny model's files, served as org/tiny."""
    pytest.importorskip("huggingface_hub")
    with serving(checkpoint, "org/tiny") as hub:
        connect(hub, tmp_path / "cache", monkeypatch)
        yield hub


def test_a_model_is_loaded_from_a_hub_that_refuses_everything_twice(
    server: Hub, checkpoint: Path, clock: list[float]
) -> None:
    import torch

    from capture.models.load import load_model

    server.fault = lambda *asked: (429, {"Retry-After": "7"}) if server.requests.count(asked) < 3 else None
    told = Told()
    loaded = load_model("org/tiny", reporter=told)
    assert server.requests.count(("GET", "/api/models/org/tiny")) == 3
    assert len(told.waits) >= 2
    assert all("429 Too Many Requests" in reason and 7 <= seconds <= 8 for reason, seconds in told.waits)
    assert all(seconds >= 7 for seconds in clock if seconds > 1)
    local = load_model(str(checkpoint))
    assert loaded.tokenizer("alpha beta kappa").input_ids == local.tokenizer("alpha beta kappa").input_ids
    for name, weight in local.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])


def test_a_tokenizer_is_never_loaded_without_a_file_that_the_hub_withholds(server: Hub, clock: list[float]) -> None:
    """transformers alone goes on without it, and the tokens would be others."""
    from capture.models.load import load_model

    server.fault = lambda _, path: 503 if path.endswith("/tokenizer_config.json") else None
    with pytest.raises(OutliersError, match="refused tokenizer of the model org/tiny .*503 Service Unavailable"):
        load_model("org/tiny")


def test_a_model_that_the_hub_does_not_have_is_refused_at_once(server: Hub, clock: list[float]) -> None:
    from capture.models.load import load_model

    with pytest.raises(OutliersError, match="cannot load the model org/other"):
        load_model("org/other")
    assert clock == []
