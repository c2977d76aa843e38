"""The API of the hub as a server on this machine: repositories in memory, uploads by LFS, faults on demand.

It answers what huggingface_hub asks on the way from `create_repo` to a commit, by the paths and fields that this client
uses, and nothing else: an unknown path is a 501, so that a test that strays fails.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_ofthetests"
LARGE = (".safetensors",)  # that the hub stores as LFS


@dataclass
class FakeRepository:
    """A repository: its files by path, its commits, and its visibility."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class FakeHub:
    """The state of the server.

    Attributes:
        rights: of a fine-grained token, as the hub answers them.
        organisations: of the user, by name the role in it.
        requests: "METHOD path" of every request, in order.
        uploads: objects of LFS that were sent, in order.
        refuse: path of a request (a pattern) -> status that it is answered with.
        broken: a pattern of "METHOD path": the connection is closed without an answer.
    """

    url: str = ""
    role: str = "write"
    rights: dict[str, Any] = field(default_factory=dict)
    organisations: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken: str | None = None

    def asked(self, pattern: str) -> int:
        """The number of requests like a pattern."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = self.path.partition("?")[0]
        request = f"{method} {path}"
        self.hub.requests.append(request)
        if self.hub.broken is not None and re.search(self.hub.broken, request):
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refused = next((each for pattern, each in self.hub.refuse.items() if re.search(pattern, request)), None)
        if refused is not None:
            self._send(refused[0], {"error": refused[1]})
        elif "/lfs/" not in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        else:
            self._route(request, body)

    def _route(self, request: str, body: bytes) -> None:
        routes: dict[str, Callable[..., None]] = {
            r"GET /api/whoami-v2": self._whoami,
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate,
            r"GET /api/models/([^/]+/[^/]+)(?:/revision/main)?": self._info,
            r"POST /api/models/([^/]+/[^/]+)/preupload/main": self._preupload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"PUT /lfs/([0-9a-f]{64})": self._upload,
            r"POST /api/models/([^/]+/[^/]+)/commit/main": self._commit,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, request):
                answer(*found.groups(), body)
                return
        self._send(501, {"error": f"the fake does not know {request}"})

    def _whoami(self, _: bytes) -> None:
        token = {"displayName": "tests", "role": self.hub.role, **self.hub.rights}
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.hub.organisations.items()]
        self._send(200, {"type": "user", "name": "me", "orgs": orgs, "auth": {"accessToken": token}})

    def _create(self, body: bytes) -> None:
        content = json.loads(body)
        name = f"{content['organization']}/{content['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            self._send(409, {**answer, "error": "You already created this model repo"})
            return
        private = content.get("visibility") == "private" or bool(content.get("private"))
        self.hub.repositories[name] = FakeRepository(private=private)
        self._send(200, answer)

    def _validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _info(self, name: str, _: bytes) -> None:
        found = self.hub.repositories.get(name)
        if found is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = [{"rfilename": path} for path in sorted(found.files)]
        content = {"id": name, "sha": found.commits[-1], "private": found.private, "siblings": siblings, "tags": []}
        self._send(200, content)

    def _preupload(self, name: str, body: bytes) -> None:
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(name, each["path"]),
            }
            for each in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def _oid(self, name: str, path: str) -> str | None:
        """The id by which the client finds that a file is unchanged."""
        content = self.hub.repositories[name].files.get(path)
        if content is None:
            return None
        if path.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _batch(self, _: str, body: bytes) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append({**each, **({} if each["oid"] in self.hub.objects else {"actions": action})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "another content than announced"})
            return
        self.hub.objects[oid] = body
        self.hub.uploads.append(oid)
        self._send(200, {})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", repository.commits[-1]) != repository.commits[-1]:
            self._send(412, {"error": "A commit has happened since"})
            return
        files = dict(repository.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        repository.files = files
        commit = hashlib.sha1(body).hexdigest()
        repository.commits.append(commit)
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
