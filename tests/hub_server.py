"""A stand-in for the Hugging Face Hub: serves one folder as one repository, and refuses as often as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What the server does and saw.

    Parameters
    ----------
    folder, repository : the files, and the id that they are served under
    refusal : from (path, number of earlier requests for it) to a status and headers, or None to serve
    seen : number of requests for each (method, path)
    """

    folder: Path
    repository: str
    refusal: Callable[[str, int], tuple[int, dict[str, str]] | None] = lambda path, earlier: None
    endpoint: str = ""
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)


@contextlib.contextmanager
def serving(folder: Path, repository: str) -> Iterator[Hub]:
    """Serve on a free port of this machine."""
    hub = Hub(folder, repository)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            earlier = hub.seen[self.command, path]
            hub.seen[self.command, path] += 1
            refused = hub.refusal(path, earlier)
            if refused is not None:
                self.answer(refused[0], b"", refused[1])
            elif path == f"/api/models/{hub.repository}":
                self.answer(200, json.dumps({"id": hub.repository, "sha": COMMIT}).encode())
            elif path == f"/api/models/{hub.repository}/tree/{COMMIT}":
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": self.etag(file)}
                    for file in sorted(hub.folder.iterdir())
                ]
                self.answer(200, json.dumps(files).encode())
            elif path.startswith(f"/{hub.repository}/resolve/{COMMIT}/") and self.file(path).is_file():
                file = self.file(path)
                self.answer(200, file.read_bytes(), {"ETag": f'"{self.etag(file)}"', "X-Repo-Commit": COMMIT})
            elif f"/{hub.repository}/" in path:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def file(self, path: str) -> Path:
            return hub.folder / path.rpartition("/")[2]

        def etag(self, file: Path) -> str:
            return hashlib.sha1(file.read_bytes()).hexdigest()

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def connect(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` take this server for the hub, and a folder for its cache."""
    from huggingface_hub import constants

    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
