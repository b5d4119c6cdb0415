"""A Hub of one process: what huggingface_hub asks of repositories, answered from memory."""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """repositories: their files by name. asked: every request, "METHOD path"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, Files] = defaultdict(dict)
        self.made: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str) -> str:
        """Return the commit of a repository: other files are another one."""
        return _tag(b"".join(name.encode() + content for name, content in sorted(self.repositories[repo].items())))


class Answers(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *told: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self._path()
        if path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            given = self.server.made[-1]
            repo = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.server.repositories[repo] = {}
            return self._json({"url": f"{self.server.address}/{repo}", "id": "1", "name": repo})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return self._json({"files": modes})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = b64decode(line["value"]["content"])
                    self.server.repositories[found[1]][line["value"]["path"]] = content
            sha = self.server.commit(found[1])
            url = f"{self.server.address}/{found[1]}/commit/{sha}"
            return self._json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
        return self._nothing()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/(.+?)/(revision|tree)/([^/]+)/?", path):
            if found[1] not in self.server.repositories or found[3] not in ("main", self.server.commit(found[1])):
                return self._nothing("RepoNotFound")
            files = self.server.repositories[found[1]]
            if found[2] == "tree":
                return self._json(
                    [{"type": "file", "path": name, "size": len(own), "oid": _tag(own)} for name, own in files.items()]
                )
            siblings = [{"rfilename": name} for name in files]
            return self._json(
                {
                    "id": found[1],
                    "modelId": found[1],
                    "sha": self.server.commit(found[1]),
                    "siblings": siblings,
                    "tags": [],
                }
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repositories.get(found[1], {}).get(found[2])
            return (
                self._nothing("EntryNotFound") if content is None else self._answer(content, "application/octet-stream")
            )
        return self._nothing()

    do_HEAD = do_GET

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _commit(self) -> str:
        return self.server.commit("/".join(unquote(urlsplit(self.path).path).split("/")[1:3]))

    def _json(self, document: Any) -> None:
        self._answer(json.dumps(document).encode(), "application/json")

    def _nothing(self, code: str = "") -> None:
        self._answer(b'{"error": "not there"}', "application/json", 404, {"X-Error-Code": code} if code else {})

    def _answer(self, content: bytes, kind: str, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Type": kind, "Content-Length": str(len(content)), "ETag": f'"{_tag(content)}"'}
        for name, value in {**told, "X-Repo-Commit": self._commit(), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub at work meanwhile."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
