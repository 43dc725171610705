"""Stores in archives, on web servers, in buckets and on the Hub: the same answers, few requests, and clear failures."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyze import Criteria, OutliersError, extreme_tokens, find_outliers, open_store, store_info, view_peaks
from analyze.cli import main
from analyze.question.view import View
from analyze.reading.locations import open_location
from analyze.sharing.pack import pack
from tests import builders, servers

pytestmark = pytest.mark.slow

obstore = pytest.importorskip("obstore")

ROOT = Path(__file__).parents[3]
X = builders.random_activations((3, 4, 2, 64, 96))
MANY = (Criteria(magnitude=2.5), Criteria(magnitude=3, signal="output", counting="pooled", layer_unit="layer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, one without consolidated metadata, and a packed one."""
    folder = tmp_path_factory.mktemp("served")
    path = builders.on_disk(folder / "s.zarr", X)
    plain = Path(shutil.copytree(path, folder / "plain.zarr"))
    metadata = json.loads((plain / "zarr.json").read_text())
    del metadata["consolidated_metadata"]
    (plain / "zarr.json").write_text(json.dumps(metadata))
    pack(path, folder / "s.zarr.zip")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Nginx]:
    with servers.nginx(folder, tmp_path_factory.mktemp("nginx")) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """URL of the folder in a bucket of a stand-in of S3."""
    moto = pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        running = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        patch.setattr("werkzeug.serving.WSGIRequestHandler.log", lambda *_: None)
        running.start()
        host, port = running.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        settings = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        for name, value in {**settings, "ENDPOINT_URL": endpoint}.items():
            patch.setenv(f"AWS_{name}", value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        from obstore.store import S3Store

        target = S3Store.from_url("s3://bucket/some", client_options={"allow_http": True})
        for file in folder.rglob("*"):
            if file.is_file() and ".views" not in file.parts:
                obstore.put(target, file.relative_to(folder).as_posix(), file.read_bytes())
        yield "s3://bucket/some"
        running.stop()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_same(store: str, folder: Path) -> None:
    """Every variable, and the answers to stored and streamed views, are those of the folder."""
    local, other = open_store(folder / "s.zarr"), open_store(store)
    for name in local:
        np.testing.assert_array_equal(other[name].values, local[name].values, err_msg=str(name))
    assert local.attrs == other.attrs
    for criteria in (*MANY, Criteria(magnitude=2, skip_first=3, scale="rms")):
        assert find_outliers(store, criteria) == find_outliers(local, criteria)


@pytest.mark.parametrize("name", ["s.zarr", "plain.zarr", "s.zarr.zip"])
def test_a_web_server(name: str, folder: Path, server: servers.Nginx) -> None:
    assert_same(f"{server.url}/{name}", folder)


def test_a_slash_at_the_end(folder: Path, server: servers.Nginx) -> None:
    assert find_outliers(f"{server.url}/s.zarr/") == find_outliers(folder / "s.zarr")


@pytest.mark.parametrize("name", ["s.zarr", "plain.zarr", "s.zarr.zip"])
def test_a_bucket(name: str, folder: Path, bucket: str) -> None:
    assert_same(f"{bucket}/{name}", folder)


def test_an_archive_on_disk(folder: Path) -> None:
    assert_same(str(folder / "s.zarr.zip"), folder)
    assert sorted(file.name for file in folder.iterdir()) == ["plain.zarr", "s.zarr", "s.zarr.zip"]
    assert not (folder / "plain.zarr" / ".views").exists()


def test_the_hub_at_one_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    from tests import hub

    with hub.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        repository = running.repositories.setdefault("org/name", hub.Repository(private=True))
        for file in (folder / "s.zarr").rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                key = "deep/" + file.relative_to(folder).as_posix()
                repository.files[key] = hub.File(content, len(content))
        packed = (folder / "s.zarr.zip").read_bytes()
        repository.files["s.zarr.zip"] = hub.File(packed, len(packed))
        assert_same("hf://datasets/org/name/s.zarr.zip", folder)
        url = "hf://datasets/org/name/deep/s.zarr"
        assert_same(url, folder)
        assert find_outliers("hf://datasets/org/name@main/deep/s.zarr") == find_outliers(folder / "s.zarr")
        assert running.asked("GET", "/resolve/main/") == 0
        assert running.asked("GET", f"/resolve/{'0' * 40}/deep/s.zarr/zarr.json")
        with pytest.raises(OutliersError, match=r"Hub does not give dataset org/other \(404\); check its name"):
            open_store("hf://datasets/org/other/s.zarr")
        with pytest.raises(OutliersError, match="no store at hf://datasets/org/name/no.zarr .404"):
            open_store("hf://datasets/org/name/no.zarr")
    for wrong in (
        "hf://org/name/s.zarr",
        "hf://datasets/org/name",
        "hf://datasets/org/name/",
        "hf://datasets/org/name/../s.zarr",
    ):
        with pytest.raises(OutliersError, match="expected hf://datasets/ORG/NAME/STORE.zarr"):
            open_store(wrong)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(OutliersError, match="Hub cannot be reached"):
        open_store(url)


def test_the_token_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    from analyze.reading.hub import HubDataset

    assert "secret" not in repr(HubDataset("https://h/x", "1", (("authorization", "Bearer secret"),)))


def test_a_stored_view_reads_metadata_and_peaks_of_its_signal_only(folder: Path, server: servers.Nginx) -> None:
    server.forget()
    find_outliers(f"{server.url}/s.zarr", Criteria(magnitude=2.5))
    requests = server.requests()
    asked = {request.path.split("/")[2] for request in requests}
    assert asked == {
        *("zarr.json", "signal", "site", "done", "nll", "digest"),
        *("layer_high", "layer_low", "position_peak", "nonfinite_count"),
    }
    # One for each file: these are so small that they come with their index.
    assert len(requests) == len({request.path for request in requests}) == 1 + 2 + 3 * 7
    assert all(request.method == "GET" and request.status in (200, 206) for request in requests)


def test_of_a_large_file_only_its_part_is_fetched(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    x = np.random.default_rng(0).normal(size=(2, 2, 2, 256, 512)).astype(np.float32)
    builders.on_disk(tmp_path / "s.zarr", x)
    with servers.nginx(tmp_path, tmp_path_factory.mktemp("nginx")) as server:
        store = open_store(f"{server.url}/s.zarr")
        server.forget()
        np.testing.assert_array_equal(store["norm_input"][1, 1, 0].values, x[1, 1, 0])
        requests = server.requests()
        file = tmp_path / "s.zarr" / "norm_input" / "c.1.0.0.0.0"
        assert sum(request.bytes for request in requests) < file.stat().st_size * 0.25 + 3 * 2**16
        assert len(requests) == 3  # the ends of both files, and one chunk
        server.forget()
        np.testing.assert_array_equal(store["norm_input"][1, 0, 1].values, x[1, 0, 1])
        assert len(server.requests()) == 1
        assert server.requests()[0].path.endswith("norm_input/c.1.0.0.0.0")


def test_neighbours_share_a_request() -> None:
    from analyze.reading.server import coalesced

    gap = 2**15
    asked = [("a", 0, 10), ("b", 5, 5), ("a", 10, 5), ("a", 15 + gap, 1), ("a", 2000 + 2 * gap, 7), ("a", 3, 4)]
    assert coalesced(asked) == [("a", 0, 16 + gap), ("a", 2000 + 2 * gap, 2007 + 2 * gap), ("b", 5, 10)]


def test_a_location_travels_to_another_process(folder: Path, server: servers.Nginx) -> None:
    for name in ("s.zarr", "s.zarr.zip"):
        store = open_store(f"{server.url}/{name}")
        one, two = (pickle.loads(pickle.dumps(store["layer_high"])) for _ in range(2))
        np.testing.assert_array_equal(one.values, two.values)
    assert pickle.loads(pickle.dumps(open_location(f"{server.url}/s.zarr"))).url == f"{server.url}/s.zarr"


def test_a_streamed_view_is_kept_in_the_users_folder(folder: Path, server: servers.Nginx, tmp_path: Path) -> None:
    url, view = f"{server.url}/s.zarr", View(skip_first=1)
    first = view_peaks(open_store(url), view).compute()
    assert len(list((tmp_path / "cache" / "outlier-features" / "views").iterdir())) == 1
    server.forget()
    again = view_peaks(open_store(url), view).compute()
    assert first.identical(again)
    assert not any("norm_input/c" in request.path and request.method == "GET" for request in server.requests())


@pytest.mark.parametrize("kind", ["http", "s3", "zip"])
def test_a_changed_store_serves_no_stale_view(
    kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    view = View(skip_first=1)
    paths = [builders.on_disk(tmp_path / f"{n}" / "s.zarr", builders.random_activations(seed=n)) for n in range(2)]
    served = tmp_path / "served"
    served.mkdir()

    def place(number: int) -> str:
        if kind == "zip":
            pack(paths[number], served / "s.zarr.zip", overwrite=True)
            return str(served / "s.zarr.zip")
        if kind == "http":
            shutil.rmtree(served / "s.zarr", ignore_errors=True)
            shutil.copytree(paths[number], served / "s.zarr")
            return "s.zarr"
        from obstore.store import S3Store

        target = S3Store.from_url("s3://bucket/changing", client_options={"allow_http": True})
        for file in paths[number].rglob("*"):
            if file.is_file():
                obstore.put(target, file.relative_to(paths[number]).as_posix(), file.read_bytes())
        return "s3://bucket/changing"

    def peaks(store: str) -> np.ndarray:
        return view_peaks(open_store(store), view)["layer_high"].values

    if kind == "s3":
        request.getfixturevalue("bucket")
    with servers.nginx(served, tmp_path_factory.mktemp("nginx")) as server:
        for number in (0, 1):
            store = f"{server.url}/{place(number)}" if kind == "http" else place(number)
            np.testing.assert_array_equal(peaks(store), peaks(str(paths[number])))


def test_without_entity_tags_nothing_is_kept(folder: Path, server: servers.Nginx, tmp_path: Path) -> None:
    store = open_store(f"{server.url}/tagless/s.zarr")
    view_peaks(store, View(skip_first=1)).compute()
    assert not (tmp_path / "cache" / "outlier-features" / "views").exists()


def test_every_analysis_command_takes_a_url(
    folder: Path, server: servers.Nginx, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["info"], ["metrics"], ["null", "--repeats", "2"], ["sweep", "--magnitude", "1:4:1"], ["map"]):
        answers = []
        for store in (folder / "s.zarr", f"{server.url}/s.zarr", f"{server.url}/s.zarr.zip"):
            assert main([words[0], str(store), *words[1:], "--json"]) == 0
            answers.append(json.loads(capsys.readouterr().out))
            answers[-1].pop("bytes", None)
        assert answers[0] == answers[1] == answers[2]
    assert store_info(f"{server.url}/s.zarr").bytes is None
    assert extreme_tokens(f"{server.url}/s.zarr") == extreme_tokens(folder / "s.zarr")
    assert main(["info", f"{server.url}/s.zarr"]) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.zarr", r"no store at .*nothing.zarr \(404: it has no zarr.json\); check the URL"),
        ("refused/s.zarr", r"zarr.json: access is refused \(403\); check the URL and your credentials"),
        ("unknown/s.zarr", r"zarr.json: the server asks who you are \(401\); check your credentials"),
        ("failing/s.zarr", r"the server fails \(500 Internal Server Error\); try again later"),
        ("nothing.zarr.zip", "no file at .*nothing.zarr.zip; check the path"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    path: str, message: str, server: servers.Nginx, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find", f"{server.url}/{path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    with pytest.raises(OutliersError, match=message):
        find_outliers(f"{server.url}/{path}")


def test_a_chunk_that_is_gone_is_named(folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Path(shutil.copytree(folder / "s.zarr", tmp_path / "served" / "s.zarr"))
    (path / "layer_low" / "c.0.2.0.0.0").unlink()
    file = path / "norm_input" / "c.1.0.0.0.0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with servers.nginx(path.parent, tmp_path_factory.mktemp("nginx")) as server:
        url = f"{server.url}/s.zarr"
        with pytest.raises(
            OutliersError, match=r"layer_low is damaged at .*sequence 2.*layer_low/c.0.2.0.0.0 is missing"
        ):
            find_outliers(url)
        with pytest.raises(
            OutliersError, match=r"norm_input is damaged at sequence 1, layer 0, site ln_attn .*checksum"
        ):
            open_store(url)["norm_input"].compute()
        short = path / "nll" / "c.0.0"
        short.write_bytes(short.read_bytes()[:10])
        with pytest.raises(OutliersError, match=r"nll is damaged at .*cut short"):
            open_store(url)["nll"].compute()


def test_nobody_listens() -> None:
    began = time.perf_counter()
    with pytest.raises(OutliersError, match="it cannot be reached: check the address and the network"):
        open_store(f"http://127.0.0.1:{servers.free_port()}/s.zarr")
    assert time.perf_counter() - began < 10


def test_a_silent_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLIERS_TIMEOUT", "1")
    with servers.answering(lambda connection, request: None) as url:
        began = time.perf_counter()
        with pytest.raises(OutliersError, match="does not answer in time: try again, or allow more seconds with OUT"):
            open_store(f"{url}/s.zarr")
        assert time.perf_counter() - began < 10
    monkeypatch.setenv("OUTLIERS_TIMEOUT", "soon")
    with pytest.raises(OutliersError, match="OUTLIERS_TIMEOUT is soon; expected a whole number of seconds"):
        open_store(f"{url}/s.zarr")


def test_a_connection_cut_in_the_middle_of_an_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = {"left": 10**6}

    def answer(connection: socket.socket, request: bytes) -> None:
        """The folder, closing the connection halfway through files below `layer_high` while there are cuts left."""
        path = request.split()[1].decode().lstrip("/")
        data = (folder / path).read_bytes()
        head = (
            f"HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Range: bytes 0-{len(data) - 1}/{len(data)}"
        )
        if b"range:" not in request.lower():
            head = "HTTP/1.1 200 OK\r\nConnection: close"
        if "layer_high" in path and cuts["left"] > 0:
            cuts["left"] -= 1
            data, length = data[: len(data) // 2], len(data)
        else:
            length = len(data)
        connection.sendall(f"{head}\r\nContent-Length: {length}\r\n\r\n".encode() + data)
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    with servers.answering(answer) as url:
        with pytest.raises(OutliersError, match="layer_high/c.*: the connection was cut in the middle of an answer"):
            find_outliers(f"{url}/s.zarr")
        cuts["left"] = 2  # passing faults are waited out
        assert find_outliers(f"{url}/s.zarr") == find_outliers(folder / "s.zarr")
        assert cuts["left"] == 0


def test_a_page_in_place_of_a_store() -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")

    with (
        servers.answering(answer) as url,
        pytest.raises(OutliersError, match=r"metadata of http.* are damaged \(Expec"),
    ):
        open_store(f"{url}/s.zarr")


def test_an_endless_answer_is_not_waited_for() -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{")

    with (
        servers.answering(answer) as url,
        pytest.raises(OutliersError, match="zarr.json is larger than the 8,388,608"),
    ):
        open_store(f"{url}/s.zarr")


@pytest.mark.parametrize("url", ["ftp://host/s.zarr", "gs://bucket/s.zarr", "file:///tmp/s.zarr"])
def test_other_kinds_of_urls(url: str) -> None:
    with pytest.raises(OutliersError, match="cannot be opened; expected a path, or a URL with https://"):
        open_store(url)


@pytest.mark.parametrize("url", ["https://host/s.zarr?token=1", "https://[bad/s.zarr", "https:///s.zarr"])
def test_urls_that_name_no_folder(url: str) -> None:
    with pytest.raises(OutliersError, match="cannot be opened .*; expected https://HOST/STORE.zarr"):
        open_store(url)


def test_missing_and_refused_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutliersError, match="no store at s3://bucket/some/none.zarr .404"):
        open_store(f"{bucket}/none.zarr")


@pytest.mark.parametrize("name", ["s.zarr.zip", "https://host/s.zarr"])
def test_what_needs_a_folder_says_so(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = name if "://" in name else str(folder / name)
    for words in (["verify", store], ["push", store, "hf://datasets/org/name", "--dry-run"]):
        assert main(words) == 2
        shown = capsys.readouterr().err
        assert "needs a folder" in shown or "needs a store in a folder" in shown or "expected the folder" in shown


def test_no_credentials() -> None:
    from analyze.reading.transport import reason

    text = "Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error ... kind: Connect"
    assert reason(Exception(text), None).startswith("no credentials; set AWS_ACCESS_KEY_ID")


def test_an_empty_file_on_a_server_is_damage(server: servers.Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server can give no last part of nothing; some say so by a status of its own."""
    import obstore

    get = obstore.get_async

    def unsatisfiable(store: Any, key: str, **more: Any) -> Any:
        if "layer_high/c" in key or key.endswith(".zip"):
            raise obstore.exceptions.GenericError("Server returned non-2xx status code: 416 Range Not Satisfiable")
        return get(store, key, **more)

    monkeypatch.setattr(obstore, "get_async", unsatisfiable)
    with pytest.raises(OutliersError, match=r"layer_high is damaged at .* is empty or cut short"):
        find_outliers(f"{server.url}/s.zarr", MANY[0])
    with pytest.raises(OutliersError, match=r"s.zarr.zip is no whole ZIP file .* is empty or cut short"):
        open_store(f"{server.url}/s.zarr.zip")


def test_a_server_without_parts_serves_what_is_small(folder: Path, server: servers.Nginx) -> None:
    """As Python's http.server."""
    for name in ("s.zarr", "s.zarr.zip"):
        assert find_outliers(f"{server.url}/partless/{name}") == find_outliers(folder / name)
    with pytest.raises(OutliersError, match="cannot send parts of files, which activations are read in; expected one"):
        find_outliers(f"{server.url}/partless/s.zarr", Criteria(skip_first=1))


def test_the_http_server_of_python(folder: Path) -> None:
    port = servers.free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            servers.wait_for(port)
            url = f"http://127.0.0.1:{port}/s.zarr"
            assert find_outliers(url) == find_outliers(folder / "s.zarr")
            with pytest.raises(OutliersError, match="which activations are read in"):
                open_store(url)["norm_input"].compute()
        finally:
            process.terminate()


def test_a_large_file_is_not_taken_whole(server: servers.Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.reading.server._LARGEST_WHOLE", 100)
    with pytest.raises(OutliersError, match=r"is larger than the 100 bytes"):
        find_outliers(f"{server.url}/partless/s.zarr")


def dripping(head: bytes) -> Callable[[socket.socket, bytes], None]:
    """A server that sends a head and then a byte at a time."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.2)

        threading.Thread(target=drip, daemon=True).start()

    return answer


DRIPS = [b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "]


@pytest.mark.parametrize("head", DRIPS, ids=["body", "head"])
def test_a_server_that_drips_is_not_waited_for(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLIERS_TIMEOUT", "1")
    with servers.answering(dripping(head)) as url:
        began = time.perf_counter()
        with pytest.raises(OutliersError, match="does not answer in time"):
            open_store(f"{url}/s.zarr")
        assert time.perf_counter() - began < 10


@pytest.mark.parametrize("head", [b"", *DRIPS], ids=["silent", "body", "head"])
def test_an_interrupt_is_heard_within_a_second(head: bytes) -> None:
    asked = threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.set()
        if head:
            dripping(head)(connection, request)

    with servers.answering(answer) as url:
        words = [sys.executable, "-m", "analyze.cli", "find", f"{url}/s.zarr"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            assert asked.wait(120)
            time.sleep(0.5)
            began = time.perf_counter()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
            assert time.perf_counter() - began < 5  # a second, and what a busy machine adds
    assert (process.returncode, told) == (130, b"outliers: interrupted\n")


@pytest.mark.parametrize("path", ["nothing.zarr", "refused/s.zarr", "failing/s.zarr"])
def test_a_password_in_a_url_is_not_repeated(
    path: str, server: servers.Nginx, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find", f"{server.url.replace('://', '://jane:hidden@')}/{path}"]) == 2
    told = capsys.readouterr().err
    assert "hidden" not in told
    assert "http://...@" in told


def serving(folder: Path, head: Callable[[int, int, int, bool], str]) -> Callable[[socket.socket, bytes], None]:
    """A server of a folder whose heads are what a function says of (start, stop, size of the file, whether parts)."""

    def answer(connection: socket.socket, request: bytes) -> None:
        data = (folder / request.split()[1].decode().lstrip("/")).read_bytes()
        start, stop = 0, len(data)
        asked = re.search(rb"range: bytes=(\d*)-(\d*)", request, re.IGNORECASE)
        if asked is not None and asked[1] == b"":
            start = max(0, stop - int(asked[2]))
        elif asked is not None:
            start, stop = int(asked[1]), int(asked[2]) + 1
        words = head(start, stop, len(data), asked is not None)
        connection.sendall(f"HTTP/1.1 {words}\r\nConnection: close\r\n\r\n".encode() + data[start:stop])
        connection.close()

    return answer


def sound(start: int, stop: int, size: int, part: bool, length: int | None = None, of: int | str | None = None) -> str:
    status = (
        f"206 Partial\r\nContent-Range: bytes {start}-{stop - 1}/{size if of is None else of}" if part else "200 OK"
    )
    return f"{status}\r\nContent-Length: {stop - start if length is None else length}"


HEADS: dict[str, tuple[Callable[[int, int, int, bool], str], str]] = {
    "compressed": (
        lambda *of: sound(*of) + "\r\nContent-Encoding: gzip",
        "compresses its files .gzip.; have it",
    ),
    "no length": (lambda *of: sound(*of).rpartition("\r\n")[0], "not those of a file server .Content-Length .*missing"),
    "another range": (
        lambda start, stop, size, part: sound(start + part, stop + part, size + 1, part),
        "not those of a file server .Requested .* got",
    ),
    "an unknown size": (
        lambda start, stop, _, part: sound(start, stop, "*", part),
        "not those of a file server .value for CONTENT_RANGE",
    ),
    "a size that is none": (
        lambda start, stop, _, part: sound(start, stop, 10**15, part),
        "not those of a file server .Requested .* got",
    ),
    "no range": (
        lambda *of: sound(*of) if not of[3] else f"206 Partial\r\nContent-Length: {of[1] - of[0]}",
        "not those of a file server .Content-Range",
    ),
    "a loop": (lambda *of: "302 Found\r\nLocation: /s.zarr/zarr.json", "not those of a file server .error foll"),
    "a redirect to a file": (
        lambda *of: "302 Found\r\nLocation: file:///etc/passwd",
        "those of a file server .302",
    ),
    "no date": (lambda *of: sound(*of) + "\r\nLast-Modified: now", "not those of a file server .Invalid last modified"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_servers_that_are_none_of_files_say_why(kind: str, folder: Path) -> None:
    """Their answers are never taken for values, and nobody is told to try again."""
    with servers.answering(serving(folder, sound)) as url:
        assert find_outliers(f"{url}/s.zarr", MANY[0]) == find_outliers(folder / "s.zarr", MANY[0])
    head, said = HEADS[kind]
    with servers.answering(serving(folder, head)) as url:
        for name in ("s.zarr", "s.zarr.zip"):
            with pytest.raises(OutliersError, match=said) as caught:
                find_outliers(f"{url}/{name}", MANY[0])
            assert "\n" not in str(caught.value)
            assert "try again" not in str(caught.value)
