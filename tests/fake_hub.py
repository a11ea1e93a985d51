"""A hub on loopback that behaves, or misbehaves on purpose: slow, broken off, flipped bytes, refusals.

Speaks the part of the hub's protocol a pull uses. Records what it was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
_STEP = 1 << 14


@dataclass
class FakeHub:
    """`repos[name][path]` are the files. Set a misbehaviour, run a command, look at `asked`."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    tokens: list[str | None] = field(default_factory=list)
    status: int = 0  # answer everything with this
    headers: dict[str, str] = field(default_factory=dict)
    flip_at: int | None = None  # this byte of every body is wrong
    break_at: list[int] = field(default_factory=list)  # close one connection after so many bytes of a body, each once
    ignore_range: bool = False
    delay_s: float = 0.0  # before any answer
    step_s: float = 0.0  # between pieces of a body
    redirect: str | None = None  # every file is elsewhere
    url: str = ""

    def gets(self) -> list[tuple[str, str | None]]:
        """Path and Range of every request for a file's content."""
        return [(path, span) for method, path, span in self.asked if method == "GET" and not path.startswith("/api/")]

    def file(self, path: str) -> bytes | None:
        """The content at `/owner/name/resolve/REV/file`, or at `/plain/file`."""
        parts = unquote(path).strip("/").split("/")
        if parts[0] == "plain":
            return self.repos.get("plain", {}).get("/".join(parts[1:]))
        if len(parts) < 5 or parts[2] != "resolve" or parts[3] not in ("main", self.commit):
            return None
        return self.repos.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))

    def describe(self, path: str) -> dict | list | None:
        """The JSON of `/api/models/owner/name[/{revision,tree}/REV]`."""
        parts = unquote(path).strip("/").split("/")
        files, revision = self.repos.get("/".join(parts[2:4])), parts[5] if len(parts) > 5 else "main"
        if files is None or revision not in ("main", self.commit):
            return None
        siblings = [_sibling(name, content) for name, content in files.items()]
        if len(parts) > 5 and parts[4] == "tree":
            return [_entry(sibling) for sibling in siblings]
        return {"id": "/".join(parts[2:4]), "modelId": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings}


def etag(name: str, content: bytes) -> str:
    """sha256 for what the hub keeps as large files, git's sha1 for the rest."""
    if name.endswith((".gguf", ".safetensors")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(name: str, content: bytes) -> dict:
    entry: dict = {"rfilename": name, "size": len(content), "blobId": etag(name, content)[:40]}
    if len(etag(name, content)) == 64:
        entry["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
    return entry


def _entry(sibling: dict) -> dict:
    entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
    if "lfs" in sibling:
        entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        time.sleep(self.hub.delay_s)
        if self.hub.status:
            self._send(self.hub.status, b"{}", self.hub.headers)
        elif path.startswith("/api/"):
            found = self.hub.describe(path)
            not_found = {"X-Error-Code": "RepoNotFound"}
            self._send(200, json.dumps(found).encode(), {}) if found else self._send(404, b"{}", not_found)
        elif (content := self.hub.file(path)) is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif self.hub.redirect:
            self._send(302, b"", {"Location": self.hub.redirect})
        else:
            self._send_file(path.rsplit("/", 1)[-1], content)

    def _send_file(self, name: str, content: bytes) -> None:
        start, span = 0, self.headers.get("Range")
        if span and not self.hub.ignore_range:
            start = int(span.removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.hub.flip_at is not None:
            content = bytearray(content)
            content[self.hub.flip_at] ^= 1
        self._send(206 if start else 200, bytes(content[start:]), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        is_file = "ETag" in headers
        stop = self.hub.break_at.pop(0) if is_file and self.hub.break_at else None
        for at in range(0, len(body[:stop]), _STEP):
            self.wfile.write(body[at : at + _STEP] if stop is None else body[at : min(at + _STEP, stop)])
            self.wfile.flush()
            time.sleep(self.hub.step_s if is_file else 0)
        if stop is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that went away is part of the tests."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
