"""What `find` asks of a server that has a store: requests, bytes and seconds, beside the same store on disk."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from analyze import Criteria, find_outliers
from capture.store.schema import Sizes
from tests import servers
from tests.benchmarks.table import SITES, in_turns, made_up, record

ROUNDS = 5
CRITERIA = Criteria(magnitude=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("served") / "s.zarr", Sizes(8, 12, SITES, 1024, 1024), raw=True)


def size(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def row(where: str, requests: int, sent: str, wall: list[float]) -> None:
    record(
        "Stores on servers",
        f"`find` with a stored view, 8 x 1,024 tokens, 1,024 wide, 12 layers: {where}",
        f"{requests} requests{sent}; {wall[0]:.2f} s / {wall[1]:.2f} s from disk",
    )


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_web_server(form: str, path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from analyze.sharing.pack import pack

    local = path
    if form == "archive":
        local = pack(path, path.with_name("s.zarr.zip"), overwrite=True)
    with servers.nginx(path.parent, tmp_path_factory.mktemp("nginx")) as server:
        url = f"{server.url}/{local.name}"
        server.forget()
        found = find_outliers(url, CRITERIA)
        requests = server.requests()
        wall, _ = in_turns(ROUNDS, lambda: find_outliers(url, CRITERIA), lambda: find_outliers(local, CRITERIA))
    assert found == find_outliers(local, CRITERIA)
    sent = f", {sum(request.bytes for request in requests) / 1e6:.1f} MB of {size(path):.0f} MB"
    row(f"{form} behind nginx", len(requests), sent, wall)


def test_a_bucket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from moto.server import ThreadedMotoServer
    from obstore.store import S3Store

    asked: list[tuple] = []
    monkeypatch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *words: asked.append(words))
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        for name, value in {**settings, "ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        target = S3Store.from_url("s3://bucket/s.zarr", client_options={"allow_http": True})
        for file in path.rglob("*"):
            if file.is_file() and not file.as_posix().endswith(".zip"):
                obstore.put(target, file.relative_to(path).as_posix(), file.read_bytes())
        asked.clear()
        find_outliers("s3://bucket/s.zarr", CRITERIA)
        requests = len(asked)
        ways = (lambda: find_outliers("s3://bucket/s.zarr", CRITERIA), lambda: find_outliers(path, CRITERIA))
        wall, _ = in_turns(ROUNDS, *ways)
    finally:
        server.stop()
    row("a bucket of moto, in Python", requests, "", wall)
