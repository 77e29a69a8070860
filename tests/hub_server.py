"""A small Hugging Face hub on this machine: as much of its protocol as ``huggingface_hub`` speaks with llmc.

Downloads: the commit of a revision, the tree of a commit, references, files by HEAD and GET with entity tags, ranges,
and a redirect of large files to a store of its own. Uploads: a repository made, a branch made, what goes where
(preupload), the large file store's batch and its objects, a commit. What is to go wrong is a field of
:class:`HubServer`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = 4096
"""Bytes; larger files lie in the large file store."""
TOKEN = "hf_secretsecretsecretsecretsecret00"
_JSON = "application/json"


@dataclass
class Repository:
    """Files by commit, and what commits are called."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit that has exactly these files; its hash."""
        text = "".join(f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        name = hashlib.sha1(f"{len(self.commits)} {text}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def resolve(self, revision: str) -> str | None:
        """The hash of a branch, tag or commit."""
        known = {**self.tags, **self.branches, **{name: name for name in self.commits}}
        return known.get(revision)


@dataclass
class HubServer:
    """The hub's contents, what it was asked for, and what it does wrong.

    Attributes:
        repositories: By ``owner/name``.
        objects: The large file store, by SHA-256.
        requests: Method and path of each, in order.
        authorizations: Those that came with requests to the store, which must see none.
        spoiled: Names of files whose content arrives changed.
        cut_after: Bytes after which a connection of the store breaks, once; None: never.
        pause: Seconds between pieces of the store's answers.
        status: What every request is answered with; None: the right answer.
        ignores_ranges: The store sends whole files.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)
    cut_after: int | None = None
    pause: float = 0.0
    status: int | None = None
    ignores_ranges: bool = False
    sent: int = 0
    address: str = ""

    def add(self, name: str, files: dict[str, bytes], **facts: Any) -> Repository:
        """A repository with one commit on its main branch."""
        repository = self.repositories.setdefault(name, Repository(**facts))
        repository.commit(files)
        for data in files.values():
            self.objects[hashlib.sha256(data).hexdigest()] = data
        return repository


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server; it is closed with the block."""
    hub = HubServer()

    class Handler(_Handler):
        server_hub = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, cache: Any, token: str | None = None) -> None:
    """Let ``huggingface_hub`` in this process speak with ``hub``, and keep its cache elsewhere."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *_: object) -> None:
        """Tests look at ``requests``."""

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_POST(self) -> None:
        self._answer(send_body=True)

    def do_PUT(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send_body = send_body
        hub = self.server_hub
        hub.requests.append((self.command, path))
        if hub.status is not None:
            self._send(hub.status, b"{}")
            return
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                method(self, *match.groups())
                return
        self._send(404, b"{}")

    def _repository(self, name: str, *, content: bool = False) -> Repository | None:
        """The repository, or None once the refusal is sent."""
        repository = self.server_hub.repositories.get(name)
        token = self.headers.get("Authorization")
        authorized = token == f"Bearer {TOKEN}"
        if token is not None and not authorized:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.private and not authorized):
            # Who is nobody is not told whether it is there.
            self._send(404 if authorized else 401, b"{}", {"X-Error-Code": "RepoNotFound"} if authorized else {})
        elif content and repository.gated and not authorized:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        else:
            return repository
        return None

    def _commit(self, repository: Repository, revision: str) -> str | None:
        if (commit := repository.resolve(revision)) is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return commit

    def info(self, name: str, revision: str | None) -> None:
        if (repository := self._repository(name)) and (commit := self._commit(repository, revision or "main")):
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self._send_json(
                {
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "siblings": siblings,
                    "tags": [],
                    "private": repository.private,
                }
            )

    def tree(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) and (commit := self._commit(repository, revision)):
            self._send_json([_entry(path, data) for path, data in sorted(repository.commits[commit].items())])

    def refs(self, name: str) -> None:
        if repository := self._repository(name):
            self._send_json(
                {
                    "branches": [_reference("heads", *item) for item in repository.branches.items()],
                    "tags": [_reference("tags", *item) for item in repository.tags.items()],
                    "converts": [],
                }
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name, content=True)
        commit = self._commit(repository, revision) if repository else None
        if repository is None or commit is None:
            return
        data = repository.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            self._send(404, b"{}", {**headers, "X-Error-Code": "EntryNotFound"})
        elif len(data) > LARGE:
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
            # As another host, so that a token that were sent along would be seen.
            store = self.server_hub.address.replace("127.0.0.1", "localhost")
            self._send(302, b"", {**headers, "Location": f"{store}/store/{digest}/{path}?Signature=signed"})
        else:
            data = data[::-1] if path in self.server_hub.spoiled else data
            original = repository.commits[commit][path]
            self._send(200, data, {**headers, "ETag": f'"{_git_id(original)}"'})

    def store(self, digest: str, path: str) -> None:
        hub = self.server_hub
        hub.authorizations.append(self.headers.get("Authorization"))
        data = hub.objects[digest]
        if path in hub.spoiled:
            data = data[::-1]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        hub.ranges.append(self.headers.get("Range"))
        start = int(asked[1]) if asked and not hub.ignores_ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        for begin in range(start, len(data) if self._send_body else 0, 1 << 14):
            if hub.cut_after is not None and hub.sent >= hub.cut_after:
                hub.cut_after, self.close_connection = None, True
                return
            piece = data[begin : begin + (1 << 14)]
            self.wfile.write(piece)
            self.wfile.flush()
            hub.sent += len(piece)
            time.sleep(hub.pause)

    def create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self._body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server_hub.repositories:
            self._send_json({"url": f"{self.server_hub.address}/{name}"}, 409)
            return
        self.server_hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self.server_hub.repositories[name].commit({".gitattributes": b"*.data filter=lfs\n"})
        self._send_json({"url": f"{self.server_hub.address}/{name}"})

    def branch(self, name: str, branch: str) -> None:
        if self._may_write() and (repository := self._repository(name)):
            if branch in repository.branches:
                self._send(409, b"{}")
            else:
                repository.branches[branch] = repository.branches["main"]
                self._send_json({})

    def preupload(self, name: str, revision: str) -> None:
        if self._may_write() and (repository := self._repository(name)) and self._commit(repository, revision):
            files = json.loads(self._body)["files"]
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for item in files
            ]
            self._send_json({"files": modes})

    def batch(self, name: str) -> None:
        if not self._may_write():
            return
        objects = []
        for item in json.loads(self._body)["objects"]:
            href = f"{self.server_hub.address}/upload/{item['oid']}?Signature=signed"
            known = item["oid"] in self.server_hub.objects
            objects.append({**item, **({} if known else {"actions": {"upload": {"href": href}}})})
        self._send_json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        self.server_hub.authorizations.append(self.headers.get("Authorization"))
        right = hashlib.sha256(self._body).hexdigest() == digest
        if right:
            self.server_hub.objects[digest] = self._body
        self._send(200 if right else 400, b"")

    def commit(self, name: str, revision: str) -> None:
        repository = self._repository(name) if self._may_write() else None
        if repository is None or revision not in repository.branches:
            return
        files = dict(repository.commits[repository.branches[revision]])
        for line in self._body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                self.server_hub.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server_hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, revision)
        url = f"{self.server_hub.address}/{name}/commit/{commit}"
        self._send_json({"success": True, "commitOid": commit, "commitUrl": url})

    def validate(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        return False

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": _JSON})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self._send_body:
            self.wfile.write(body)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (rf"/api/models/{_NAME}", lambda handler, name: handler.info(name, None)),
    (rf"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    (rf"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    (rf"/api/models/{_NAME}/refs", _Handler.refs),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"/store/(\w+)/(.+)", _Handler.store),
    (r"/api/repos/create", _Handler.create),
    (rf"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    (rf"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/upload/(\w+)", _Handler.upload),
    (rf"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    (r"/api/validate-yaml", _Handler.validate),
)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git_id(data)}
    if len(data) > LARGE:
        digest = hashlib.sha256(data).hexdigest()
        entry |= {"oid": _git_id(b"pointer"), "lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
    return entry


def _reference(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
