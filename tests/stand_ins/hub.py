"""A Hugging Face hub in this process: repositories of a few commits, over HTTP, as its client asks for them.

It stands in for huggingface.co, which tests must not depend on and whose branches nobody moves for a test.
What it answers is what the client reads: a repository's commit and file names, and a file with its headers.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_canary"


@dataclass
class Repository:
    """Commits by their hash, oldest first; the branch `main` is the newest."""

    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, files: Files) -> str:
        text = repr([len(self.commits), sorted((name, hash(data)) for name, data in files.items())])
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        self.commits[name] = files
        return name

    def find(self, revision: str) -> tuple[str, Files] | None:
        name = list(self.commits)[-1] if revision == "main" and self.commits else revision
        return (name, self.commits[name]) if name in self.commits else None


@dataclass
class Hub:
    """`asked`: every path that was asked for, with its method."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        """What a push asks for: make the repository, how each file is to come, and one commit of all."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"POST {path}")
        parts = path.split("/")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            self.hub.repository(name)
            self._json({"url": f"{self.hub.url}/{name}", "name": name})
        elif parts[-2:-1] == ["preupload"]:
            asked = json.loads(body)["files"]
            ways = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self._json({"files": ways})
        elif parts[-2:-1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            told = [line["value"] for line in lines if line["key"] == "file"]
            files = {file["path"]: base64.b64decode(file["content"]) for file in told}
            commit = self.hub.repository("/".join(parts[2:4])).commit(files)
            url = f"{self.hub.url}/{'/'.join(parts[2:4])}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit, "hookOutput": ""})
        else:
            self._json({"errors": [], "warnings": []})

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            self._tree("/".join(parts[2:4]), parts[5])
        elif parts[:2] == ["api", "models"]:
            self._information("/".join(parts[2:4]), parts[5] if parts[4:5] == ["revision"] else "main")
        elif parts[2:3] == ["resolve"]:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._send(404, b"{}")

    def _information(self, name: str, revision: str) -> None:
        found = self.hub.repositories[name].find(revision) if name in self.hub.repositories else None
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        commit, files = found
        said = {"id": name, "sha": commit, "private": False, "siblings": [{"rfilename": n} for n in files]}
        self._json(said)

    def _tree(self, name: str, revision: str) -> None:
        found = self.hub.repositories[name].find(revision) if name in self.hub.repositories else None
        files = found[1] if found else {}
        self._json(
            [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha256(data).hexdigest()[:40],
                }
                for path, data in files.items()
            ]
        )

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self.hub.repositories[name].find(revision) if name in self.hub.repositories else None
        if found is None or file not in found[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = found[1][file]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": found[0]}
        self._send(200, data, headers)

    def _json(self, said: Any, status: int = 200) -> None:
        self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
