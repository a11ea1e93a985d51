"""A hub on loopback that behaves, or misbehaves on purpose: slow, broken off, flipped bytes, refusals.

Speaks the part of the hub's protocol a pull uses. Records what it was asked.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
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
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answers to files, each once
    api_refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    stall_at: list[int] = field(default_factory=list)  # say nothing more after so many bytes of a body, each once
    stalled_s: float = 5.0
    shift: int = 0  # the part that is sent begins so many bytes off
    lied_size: int = 0  # added to every size that is named with a file's content
    call_at: tuple[int, Callable[[], object]] | None = None  # call this when so many bytes of a body are sent, once
    before_file: Callable[[], object] = lambda: None  # called before a file's content is looked up
    sent: list[int] = field(default_factory=list)  # bytes of content sent, by request
    has_etags: bool = True
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
        if path == "/api/agent-harnesses":  # the hub library's own question, in some surroundings
            self._send(404, b"{}", {})
            return
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens.append(self.headers.get("Authorization"))
        time.sleep(self.hub.delay_s)
        if self.hub.status:
            self._send(self.hub.status, b"{}", self.hub.headers)
        elif path.startswith("/api/") and self.hub.api_refusals:
            status, headers = self.hub.api_refusals.pop(0)
            self._send(status, b"{}", headers)
        elif path.startswith("/api/"):
            found = self.hub.describe(path)
            not_found = {"X-Error-Code": "RepoNotFound"}
            self._send(200, json.dumps(found).encode(), {}) if found else self._send(404, b"{}", not_found)
        elif self.command == "GET" and self.hub.refusals:
            status, headers = self.hub.refusals.pop(0)
            self._send(status, b"{}", headers)
        elif self.command == "GET" and self.hub.before_file():
            pass
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
        if self.headers.get("If-Range", f'"{etag(name, content)}"') != f'"{etag(name, content)}"':
            start = 0
        if start >= len(content) > 0:
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        if start:
            start += self.hub.shift
        headers = {"ETag": f'"{etag(name, content)}"', "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not self.hub.has_etags:
            del headers["ETag"]
        if self.hub.flip_at is not None:
            content = bytearray(content)
            content[self.hub.flip_at] ^= 1
        self._send(206 if start else 200, bytes(content[start:]), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        is_file = "X-Repo-Commit" in headers
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) + self.hub.lied_size * is_file)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send_content(body) if is_file else self.wfile.write(body)

    def _send_content(self, body: bytes) -> None:
        hub, at = self.hub, 0
        hub.sent.append(0)
        request = len(hub.sent) - 1
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STEP)
        stop = hub.break_at.pop(0) if hub.break_at else None
        stall = hub.stall_at.pop(0) if hub.stall_at else None
        marks = [mark for mark in (stop, stall, hub.call_at and hub.call_at[0]) if mark is not None]
        end = len(body) if stop is None else min(stop, len(body))
        while at < end:
            until = min([end, at + _STEP, *(mark for mark in marks if mark > at)])
            self.wfile.write(body[at:until])
            hub.sent[request], at = until, until
            if hub.call_at and at >= hub.call_at[0]:
                (_, call), hub.call_at = hub.call_at, None
                call()
            if stall is not None and at >= stall:
                time.sleep(hub.stalled_s)
                break
            time.sleep(hub.step_s)
        self.close_connection = self.close_connection or at < len(body) or bool(hub.lied_size)


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
