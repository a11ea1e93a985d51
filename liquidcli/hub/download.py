"""One file over HTTP into a part file: resumed by Range, hashed as it streams, taken up again while bytes arrive.

Knows what servers get wrong: all of a file where the rest was asked for, another rest, another version, connections
that stand still, too many requests. Knows neither where a file belongs nor what it is.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import IntegrityError, NetworkError
from .transport import Progress, is_passing, wait_asked_for

_PAUSES_S = (0.2, 1.0, 2.0, 4.0, 8.0)  # before each try that follows one without a new byte
_LONGEST_WAIT_S = 60.0  # a server that asks for more is not waited for
_TOLD_BYTES = 1 << 20  # progress is told at this grain
_BEHIND_BYTES = 8 << 20  # how far the hash may lag behind
_SPAN = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Source:
    """`version`: the ETag or date of the bytes that are meant, "" where a hash will tell."""

    url: str
    what: str
    size_bytes: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    version: str = ""


class Stopped(Exception):
    """Another file of the same pull failed."""


def fetch(
    part: Path,
    source: Source,
    progress: Progress | None = None,
    *,
    digest: Callable[[], Any] = hashlib.sha256,
    stop: threading.Event | None = None,
) -> str:
    """Bring `part` to the whole file; its hash. On any failure what came stays, for the next try."""
    with part.open("r+b" if part.exists() else "w+b", buffering=0) as handle:
        take = _Take(handle, source, digest, progress, stop or threading.Event())
        try:
            take.read_again()
            _until_whole(take)
            os.fsync(handle.fileno())
            return take.hash.hexdigest()
        finally:
            take.hash.close()


def version_of(headers: Mapping[str, str]) -> str:
    """What a server calls this state of a file."""
    return headers.get("etag") or headers.get("last-modified") or ""


def _until_whole(take: _Take) -> None:
    fruitless = 0
    while not take.is_whole:
        before = take.done_bytes
        try:
            take.stream()
        except Exception as error:
            fruitless = fruitless + 1 if take.done_bytes <= before else 0
            wait_s = wait_asked_for(error) or _PAUSES_S[min(fruitless, len(_PAUSES_S) - 1)]
            if not is_passing(error) or fruitless >= len(_PAUSES_S) or wait_s > _LONGEST_WAIT_S:
                raise
            if take.stop.wait(wait_s):
                raise Stopped from None


class _Take:
    """The state of one download: how far it is, and the hash so far."""

    def __init__(
        self,
        handle: BinaryIO,
        source: Source,
        digest: Callable[[], Any],
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self.handle, self.source, self.digest, self.progress, self.stop = handle, source, digest, progress, stop
        self.hash, self.done_bytes, self.told_bytes, self.is_whole = _Hash(digest()), 0, 0, False

    def read_again(self) -> None:
        """The hash of what an earlier try left; what is longer than the file is no part of it."""
        size_bytes = self.source.size_bytes
        if size_bytes is None or os.fstat(self.handle.fileno()).st_size > size_bytes:
            self.begin_again()
        while piece := self.handle.read(_TOLD_BYTES):
            self.hash.update(piece)
            self.done_bytes += len(piece)
            self._check_stop()
        self._tell()
        self.is_whole = self.done_bytes == size_bytes

    def begin_again(self) -> None:
        self.handle.seek(0)
        self.handle.truncate()
        self.hash.close()
        self.hash, self.done_bytes, self.told_bytes = _Hash(self.digest()), 0, 0

    def stream(self) -> None:
        """One request for what is missing, and its answer to the end."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status

        url, timeout = self.source.url, constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=self._asked(), timeout=timeout) as answer:
            if answer.status_code == 416:
                self.begin_again()
            hf_raise_for_status(answer)
            self._place(answer)
            for piece in _pieces(answer):
                self._write(piece)
        if self.source.size_bytes is not None and self.done_bytes < self.source.size_bytes:
            raise ConnectionError("the answer ended early")
        self._tell()
        self.is_whole = True

    def _asked(self) -> dict[str, str]:
        headers = {**self.source.headers, "Accept-Encoding": "identity"}
        if self.done_bytes:
            headers["Range"] = f"bytes={self.done_bytes}-"
            if self.source.version and not self.source.version.startswith("W/"):
                headers["If-Range"] = self.source.version
        return headers

    def _place(self, answer: Any) -> None:
        """Where the bytes of this answer belong, if they belong anywhere."""
        source, length = self.source, answer.headers.get("content-length", "")
        if source.version and version_of(answer.headers) != source.version:
            raise changed(source.what)
        if answer.status_code == 206:
            span = _SPAN.fullmatch(answer.headers.get("content-range", "").strip())
            if not span or int(span[1]) != self.done_bytes:
                self.begin_again()
                raise ConnectionError("another part came than the one asked for")
            total = span[2]
        else:
            if self.done_bytes:
                self.begin_again()
            total = length if "content-encoding" not in answer.headers else ""
        if source.size_bytes is not None and total.isdecimal() and int(total) != source.size_bytes:
            sizes = f"{total} bytes there, {source.size_bytes} were expected"
            raise IntegrityError(f"{source.what} has {sizes}", hint="run the command again")

    def _write(self, piece: bytes) -> None:
        size_bytes, written = self.source.size_bytes, 0
        if size_bytes is not None and self.done_bytes + len(piece) > size_bytes:
            self.begin_again()
            said = f"more came of {self.source.what} than its {size_bytes} bytes"
            raise IntegrityError(said, hint="run the command again")
        while written < len(piece):  # a disk that is nearly full takes a part of it, and says no only then
            written += self.handle.write(memoryview(piece)[written:])
        self.hash.update(piece)
        self.done_bytes += len(piece)
        if self.done_bytes - self.told_bytes >= _TOLD_BYTES:
            self._tell()

    def _tell(self) -> None:
        self._check_stop()
        self.told_bytes = self.done_bytes
        if self.progress:
            self.progress(self.done_bytes, self.source.size_bytes or self.done_bytes, self.source.what)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped


class _Hash:
    """A digest computed beside the download, by a thread of its own; no lock that Ctrl-C could leave held."""

    def __init__(self, digest: Any) -> None:
        self._digest, self._pieces = digest, queue.SimpleQueue[bytes | None]()
        self._batch, self._batch_bytes = list[bytes](), 0
        self._given_bytes = self._taken_bytes = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def update(self, piece: bytes) -> None:
        self._batch.append(piece)
        self._batch_bytes += len(piece)
        if self._batch_bytes >= _TOLD_BYTES:  # rarely, for each handing over makes two threads wait for one another
            self._hand_over()

    def _hand_over(self) -> None:
        while self._given_bytes - self._taken_bytes > _BEHIND_BYTES:
            time.sleep(0.001)
        self._given_bytes += self._batch_bytes
        self._pieces.put(b"".join(self._batch))
        self._batch, self._batch_bytes = [], 0

    def hexdigest(self) -> str:
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        if self._thread.is_alive():
            self._hand_over()
            self._pieces.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._digest.update(piece)
            self._taken_bytes += len(piece)


def changed(what: str) -> NetworkError:
    return NetworkError(f"{what} changed on the other side while it was fetched", hint="run the command again")


def _pieces(answer: Any) -> Iterator[bytes]:
    """The bytes as they come, so that a killed process has lost next to nothing."""
    return answer.iter_bytes() if "content-encoding" in answer.headers else answer.iter_raw()


def patiently(work: Callable[[], Any], limit_s: float) -> Any:
    """A short request's result, asked again while the failure looks like a passing one and there is time."""
    deadline, tried = time.monotonic() + limit_s, 0
    while True:
        try:
            return work()
        except Exception as error:
            wait_s = wait_asked_for(error) or _PAUSES_S[tried]
            tried += 1
            is_refused = getattr(error, "response", None) is None
            if is_refused or not is_passing(error) or tried > 3 or time.monotonic() + wait_s > deadline:
                raise
            time.sleep(wait_s)
