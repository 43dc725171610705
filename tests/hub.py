"""A stand-in for the Hugging Face Hub: the part of its API that uploads, readers and models use, over `http.server`.

Datasets are held in memory; models are folders, one for each revision, and are only read.
Files are `regular` (in the commit) or `lfs` by size, as on the Hub. A client with Xet sends the large ones to the
content-addressed storage: what comes there is counted, not put together again, so that only their digests are known.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_writer"
COMMIT = "c0ffee" + "0" * 34
"""Of the branch `main` of every model."""


@dataclass
class File:
    """One file of a repository; large ones are known by their digest."""

    content: bytes | None
    size: int
    sha256: str | None = None

    @property
    def git(self) -> str:
        assert self.content is not None
        return hashlib.sha1(b"blob %d\0" % self.size + self.content).hexdigest()


@dataclass
class Repository:
    """A dataset: files as of the last commit, and what each commit did."""

    private: bool = False
    files: dict[str, File] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Parameters
    ----------
    models : commit and folder of every revision, by its name, for each model
    fault : from method and path to a status, or a status and headers, to answer with; None to serve
    """

    url: str = ""
    large: int = 10**9
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cas_bytes: int = 0
    organisations: tuple[str, ...] = ("org",)
    models: dict[str, dict[str, tuple[str, Path]]] = field(default_factory=dict)
    fault: Callable[[str, str], int | tuple[int, dict[str, str]] | None] = lambda method, path: None

    def asked(self, method: str, part: str) -> int:
        """How many requests of this method had this in their path."""
        return sum(m == method and part in path for m, path in self.requests)


@contextmanager
def running(**settings: Any) -> Iterator[Hub]:
    """A Hub that listens on a free port of this machine."""
    hub = Hub(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(folder: Path, name: str, **revisions: tuple[str, Path]) -> Iterator[Hub]:
    """A Hub that serves a folder as the branch `main` of a model, and others as other revisions."""
    with running(models={name: {"main": (COMMIT, folder), **revisions}}) as hub:
        yield hub


def connect(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` take this server for the hub, and a folder for its cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # a client of the hub that an earlier test had


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        # A connection that is kept would answer for this Hub when the next one gets its port.
        given = {"Content-Length": str(len(data)), "Content-Type": "application/json", "Connection": "close"}
        for name, value in {**given, **{key.replace("_", "-"): text for key, text in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _handle(self) -> None:
        body = self._body()
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        self.hub.requests.append((self.command, path))
        fault = self.hub.fault(self.command, path)
        if fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {"X-Error-Message": f"fault {fault}"})
            self._answer(status, {"error": f"fault {status}"}, **headers)
            return
        parts = path.strip("/").split("/")
        if parts[0] == "lfs":
            self._store(parts[1], body)
        elif parts[0] == "cas":
            self._cas(parts[1:], body)
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self._answer(401, {"error": "Invalid user token."}, X_Error_Message="Invalid user token.")
        elif parts[:2] == ["api", "models"]:
            self._model("/".join(parts[2:4]), parts[4:5], "/".join(parts[5:]))
        elif len(parts) > 4 and parts[2] == "resolve":
            self._model("/".join(parts[:2]), [parts[3]], "/".join(parts[4:]))
        elif path == "/api/whoami-v2":
            known = self.headers.get("Authorization") is not None
            self._answer(200 if known else 401, {"name": "writer", "type": "user"} if known else {"error": "who?"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:], query, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif len(parts) > 5 and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), "/".join(parts[5:]))
        else:
            self._answer(404, {"error": "no such path"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _model(self, name: str, place: list[str], rest: str) -> None:
        """A question about a model (its commit, its files), or one of its files."""
        revisions = self.hub.models.get(name)
        if revisions is None:
            self._answer(404, X_Error_Code="RepoNotFound")
            return
        asked = place[0] if place else "main"
        if place in (["revision"], ["tree"]):
            asked, _, rest = rest.partition("/")
        known = {**revisions, **{commit: (commit, folder) for commit, folder in revisions.values()}}
        if asked not in known:
            self._answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {asked}")
            return
        commit, folder = known[asked]
        if place in ([], ["revision"]):
            self._answer(200, {"id": name, "sha": commit})
        elif place == ["tree"] and not rest:
            files = [(file.name, File(file.read_bytes(), file.stat().st_size)) for file in sorted(folder.iterdir())]
            self._answer(200, [self._entry(path, file) for path, file in files])
        elif place != ["tree"] and (folder / rest).is_file():
            content = (folder / rest).read_bytes()
            self._answer(200, content, ETag=f'"{File(content, len(content)).git}"', X_Repo_Commit=commit)
        else:
            self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)

    def _validate(self, asked: dict[str, Any]) -> None:
        import yaml

        header = yaml.safe_load(asked["content"].split("---")[1])
        known = ("unknown", "apache-2.0", "odc-by", "cc-by-4.0", "other")
        if header.get("license") not in known:
            self._answer(400, {"errors": [{"message": '"license" must be one of the known ones'}], "warnings": []})
        else:
            self._answer(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in self.hub.organisations:
            text = f'You don\'t have the rights to create a dataset under the namespace "{asked["organization"]}"'
            self._answer(403, {"error": text}, X_Error_Message=text)
        elif name in self.hub.repositories:
            self._answer(409, {"error": "exists", "url": f"{self.hub.url}/datasets/{name}"})
        else:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private=private)
            self._answer(200, {"url": f"{self.hub.url}/datasets/{name}"})

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif not rest or rest[0] == "revision":
            self._answer(200, {"id": name, "sha": "0" * 40, "private": repository.private, "siblings": []})
        elif rest[0] == "tree":
            self._tree(repository, "/".join(rest[2:]), query.get("recursive") == ["true"])
        elif rest[0] == "paths-info":
            given = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
            paths = given["paths"]
            found = [self._entry(path, repository.files[path]) for path in paths if path in repository.files]
            folders = {folder for path in repository.files for folder in _parents(path)} & set(paths)
            self._answer(200, found + [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders])
        elif rest[0] == "preupload":
            self._preupload(repository, json.loads(body))
        elif rest[0] == "commit":
            self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        elif rest[0].startswith("xet-"):
            token = {"casUrl": f"{self.hub.url}/cas", "exp": int(time.time()) + 3600, "accessToken": "cas"}
            headers = {"X_Xet_Cas_Url": token["casUrl"], "X_Xet_Access_Token": "cas"}
            self._answer(200, token, X_Xet_Token_Expiration=str(token["exp"]), **headers)
        else:
            self._answer(404, {"error": "no such path"})

    @staticmethod
    def _entry(path: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size}
        if file.sha256 is None:
            return {**entry, "oid": file.git}
        return {**entry, "oid": "1" * 40, "lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}}

    def _tree(self, repository: Repository, folder: str, recursive: bool) -> None:
        below = {path: file for path, file in repository.files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not below:
            self._answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return
        depth = len(folder.split("/")) if folder else 0
        folders = sorted({name for path in below for name in _parents(path) if len(name.split("/")) > depth})
        found = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in folders]
        found += [self._entry(path, file) for path, file in below.items()]
        if not recursive:
            found = [entry for entry in found if len(entry["path"].split("/")) == depth + 1]
        self._answer(200, found)

    def _preupload(self, repository: Repository, asked: dict[str, Any]) -> None:
        answers = []
        for file in asked["files"]:
            known = repository.files.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= self.hub.large else "regular",
                    "shouldIgnore": False,
                    "oid": None if known is None else known.git if known.sha256 is None else known.sha256,
                }
            )
        self._answer(200, {"files": answers})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                repository.files[value["path"]] = File(content, len(content))
            elif line["key"] == "lfsFile":
                content = self.hub.objects.get(value["oid"])
                repository.files[value["path"]] = File(content, value["size"], value["oid"])
            elif line["key"] == "deletedFolder":
                for path in [path for path in repository.files if path.startswith(value["path"].rstrip("/") + "/")]:
                    del repository.files[path]
        paths = [line["value"]["path"] for line in lines[1:]]
        repository.commits.append({"summary": lines[0]["value"]["summary"], "paths": paths})
        oid = f"{len(repository.commits):040x}"
        url = f"{self.hub.url}/datasets/{name}/commit/{oid}"
        self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def _batch(self, asked: dict[str, Any]) -> None:
        answers = []
        for item in asked["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            answers.append(item if item["oid"] in self.hub.objects else {**item, "actions": action})
        self._answer(200, {"transfer": "basic", "objects": answers})

    def _store(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._answer(200)

    def _cas(self, rest: list[str], body: bytes) -> None:
        self.hub.cas_bytes += len(body)
        if self.command == "POST" and "xorbs" in rest:
            self._answer(200, {"was_inserted": True})
        elif self.command == "POST" and rest == ["v1", "shards"]:
            self._answer(200, {"result": 1})
        elif self.command == "HEAD":
            self._answer(200)
        else:
            self._answer(404, {"error": "unknown chunk"})

    def _resolve(self, name: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        file = None if repository is None else repository.files.get(path)
        if file is None or file.content is None:
            self._answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            return
        etag = file.git if file.sha256 is None else file.sha256
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": "0" * 40, "Accept_Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None or self.command == "HEAD":
            self._answer(200, file.content, **headers)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, file.size - int(last))
        stop = int(last) + 1 if first and last else file.size
        part = file.content[start:stop]
        self._answer(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{file.size}", **headers)


def _parents(path: str) -> list[str]:
    return list(itertools.accumulate(path.split("/")[:-1], lambda a, b: f"{a}/{b}"))
