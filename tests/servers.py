"""Servers for tests of stores on servers: nginx over a folder, a bucket, and servers that fail in a chosen way."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIGURATION = """
worker_processes 1; daemon off; pid {work}/pid; error_log {work}/error.log; {user}
events {{}}
http {{
  log_format counted '$request_method $uri $status $body_bytes_sent';
  access_log {work}/access.log counted;
  client_body_temp_path {work}/1; proxy_temp_path {work}/2; fastcgi_temp_path {work}/3;
  uwsgi_temp_path {work}/4; scgi_temp_path {work}/5;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    location /refused/ {{ return 403; }}
    location /unknown/ {{ return 401; }}
    location /failing/ {{ return 500; }}
    location /tagless/ {{ alias {folder}/; etag off; add_header Last-Modified ''; }}
    location /partless/ {{ alias {folder}/; max_ranges 0; }}
  }}
}}
"""


@dataclass(frozen=True)
class Request:
    """One line of a server's log."""

    method: str
    path: str
    status: int
    bytes: int


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    url: str
    log: Path

    def forget(self) -> None:
        """Begin to count anew."""
        self.log.write_text("")

    def requests(self) -> list[Request]:
        """What was asked since."""
        time.sleep(0.05)  # a line is written after its answer
        rows = (line.split() for line in self.log.read_text().splitlines())
        return [Request(method, path, int(status), int(sent)) for method, path, status, sent in rows]


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[Nginx]:
    """A folder over HTTP with range requests; skips where Debian's nginx is not installed, unless it has to be."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("OUTLIERS_NEED_NGINX"):
            pytest.fail("nginx is not installed, and OUTLIERS_NEED_NGINX is set")
        pytest.skip("nginx is not installed; install it with: apt-get install nginx-light")
    port, user = free_port(), "user root;" if os.geteuid() == 0 else ""
    settings = _CONFIGURATION.format(work=work, folder=folder, port=port, user=user)
    (work / "nginx.conf").write_text(settings)
    process = subprocess.Popen([program, "-c", work / "nginx.conf", "-p", work], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield Nginx(f"http://127.0.0.1:{port}", work / "access.log")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def answering(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server that does with each connection and its request whatever a function says."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            held.append(connection)
            with suppress(OSError):
                answer(connection, connection.recv(2**16))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        for connection in held:
            connection.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Until somebody listens on a port."""
    for _ in range(200):
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")
