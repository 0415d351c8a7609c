"""A stand-in for the Hugging Face Hub on this machine: what uploads and downloads of a model need.

The answers have the form of the real Hub's, with model files in Git LFS and all others in Git.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

MODELS = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(.*))?")
FILES = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """The state of the Hub. `failures` maps a part of a path to a status, or to "drop"."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, name, files
        self.commits: dict[str, list[str]] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: dict[str, str] = {}
        self.failures: dict[str, Any] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return self.revisions[repo_id][revision]

    def commit(self, repo_id: str, message: str, files: dict[str, bytes]) -> str:
        number = f"{message} {len(self.commits[repo_id])}"
        oid = hashlib.sha1(number.encode()).hexdigest()
        self.commits[repo_id].append(message)
        self.revisions[repo_id]["main"] = self.revisions[repo_id][oid] = files
        return oid


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str = "", message: str = "") -> None:
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        failure = next((f for part, f in self.hub.failures.items() if part in path), None)
        if failure == "drop":
            self.rfile.read(1)  # in the middle of the request
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if failure:
            status, code = failure if isinstance(failure, tuple) else (failure, "")
            self.error(status, code, f"not with the token {token}")
        elif token and token not in self.hub.tokens:
            self.error(401, message="Invalid credentials in Authorization header")
        elif self.command in ("GET", "HEAD"):
            self.get(path, token)
        else:
            self.post(path, body, token)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def get(self, path: str, token: str) -> None:
        if found := MODELS.fullmatch(path):
            repo_id = found[1]
            if not self.readable(repo_id, token):
                return self.error(404 if token else 401, "RepoNotFound")
            files = [{"rfilename": name} for name in self.hub.files(repo_id)]
            private = self.hub.private[repo_id]
            return self.reply(200, {"id": repo_id, "private": private, "siblings": files})
        if not (found := FILES.fullmatch(path)):  # what the client asks beside the model
            return self.error(404)
        repo_id, revision, name = found.groups()
        if not self.readable(repo_id, token):
            return self.error(404 if token else 401, "RepoNotFound")
        revisions = self.hub.revisions[repo_id]
        if revision not in revisions:
            return self.error(404, "RevisionNotFound")
        if name not in revisions[revision]:
            return self.error(404, "EntryNotFound")
        content = revisions[revision][name]
        oid = next(o for o, files in revisions.items() if files is revisions[revision] and o[9:])
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(200, content, ETag=etag, X_Repo_Commit=oid)

    def readable(self, repo_id: str, token: str) -> bool:
        private = self.hub.private.get(repo_id)
        owner = self.hub.tokens.get(token) == repo_id.split("/")[0]
        return private is not None and (not private or owner)

    def post(self, path: str, body: bytes, token: str) -> None:
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if path.startswith("/large/"):  # the upload of a file to the store behind Git LFS
            self.hub.large[path.removeprefix("/large/")] = body
            return self.reply(200)
        if not token:
            return self.error(401, message="Invalid username or password.")
        if path == "/api/repos/create":
            return self.create(json.loads(body), self.hub.tokens[token])
        if path.endswith("/info/lfs/objects/batch"):
            store = f"{self.hub.url}/large/"
            objects = [{**one, "actions": {"upload": {"href": store + one["oid"]}}}
                       for one in json.loads(body)["objects"]]  # fmt: skip
            return self.reply(200, {"transfer": "basic", "objects": objects})
        repo_id, rest = MODELS.fullmatch(path).groups()
        if rest == "preupload/main":
            modes = [{"path": one["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if one["path"].endswith(".keras") else "regular"}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self.reply(200, {"files": modes})
        assert rest == "commit/main", path
        return self.commit(repo_id, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict[str, Any], user: str) -> None:
        repo_id = f"{wanted['organization'] or user}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "id": repo_id}
        if not repo_id.startswith(f"{user}/"):
            return self.error(403, message=f"{user} cannot write to {repo_id}")
        if repo_id in self.hub.private:
            return self.reply(409, {**answer, "error": "You already created this model repo"})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.private[repo_id] = bool(private)
        self.hub.revisions[repo_id], self.hub.commits[repo_id] = {}, []
        self.hub.commit(repo_id, "initial commit", {".gitattributes": b"*.keras filter=lfs"})
        return self.reply(200, answer)

    def commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        header, files = lines[0]["value"], dict(self.hub.files(repo_id))
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        oid = self.hub.commit(repo_id, header["summary"], files)
        url = f"{self.hub.url}/{repo_id}/commit/{oid}"
        self.reply(200, {"commitUrl": url, "commitOid": oid, "success": True})


@contextmanager
def running() -> Iterator[Hub]:
    """Run a Hub on a free port."""
    hub = Hub()
    handler = type("OfThisHub", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
