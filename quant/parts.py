"""An output that is whole or absent and, if it takes long, goes on where it was stopped.

Knows a `.part` file beside the target and a journal that says up to which byte it is right, with the sha256 up to there
and the job it belongs to. A part is continued only for the same job, and only if its bytes still have that hash. Knows
nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from liquidcli.errors import DiskSpaceError, UsageError
from liquidcli.files import check_space, full_disk_told, output_target, publish, unwritable

try:
    import fcntl
except ImportError:  # Windows: two jobs with one target are not kept apart
    fcntl = None  # type: ignore[assignment]

CHECKPOINT_S = 20.0
_READ_BYTES = 1 << 20
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Part:
    """Bytes on their way to `target`. `done` counts the caller's own units that need not be written again.

    Its file is begun or found at once, and the caller's to `keep` or `abandon` from then on; `resume` comes first.
    """

    def __init__(self, target: Path, job: str) -> None:
        self.target, self.job = output_target(target), job
        self.path = self.target.with_name(f".{self.target.name}.part")
        self.journal = self.target.with_name(f".{self.target.name}.part.json")
        self.digest, self.offset, self.done = hashlib.sha256(), 0, 0
        self._file = self._open()
        self._saved_at = time.monotonic()
        self.is_saved = self._read_journal()[0] > 0  # until the contrary is known: who stops early loses nothing

    def _open(self) -> BinaryIO:
        while True:
            try:
                file = os.fdopen(os.open(self.path, _FLAGS, 0o600), "rb+")
            except OSError as error:
                raise unwritable(self.target.parent, error) from error
            if _is_locked_elsewhere(file):
                file.close()
                raise UsageError(f"another process is writing {self.target}", hint="wait for it, or name another file")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()  # its owner finished between open and lock

    def resume(self, size_bytes: int) -> None:
        """Take over what an earlier run left; DiskSpaceError where the rest of `size_bytes` does not fit."""
        offset, saved = self._read_journal()
        if offset:
            self._file.seek(0)
            left = offset
            while left and (chunk := self._file.read(min(_READ_BYTES, left))):
                self.digest.update(chunk)
                left -= len(chunk)
            if left == 0 and self.digest.hexdigest() == saved["sha256"]:
                self.offset, self.done = offset, saved["done"]
            else:
                self.digest, self.is_saved = hashlib.sha256(), False
        self._file.truncate(self.offset)
        self._file.seek(self.offset)
        check_space(self.target.parent, size_bytes - self.offset)

    def _read_journal(self) -> tuple[int, dict[str, Any]]:
        try:
            saved = json.loads(self.journal.read_text("utf-8"))
            if saved["job"] == self.job:
                return int(saved["offset"]), saved
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, {}

    def write(self, data: bytes | memoryview) -> None:
        with self._disk():
            self._file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def reached(self, done: int) -> None:
        """`done` units are written; now and then this is put down where a later run finds it."""
        self.done = done
        if time.monotonic() - self._saved_at >= CHECKPOINT_S:
            self.save()

    def save(self) -> None:
        with self._disk():
            self._sync()
            saved = {"job": self.job, "offset": self.offset, "done": self.done, "sha256": self.digest.hexdigest()}
            fresh = self.journal.with_name(f"{self.journal.name}.new")
            fresh.write_text(json.dumps(saved), "utf-8")
            fresh.replace(self.journal)
        self._saved_at, self.is_saved = time.monotonic(), True

    def seal(self) -> None:
        """Everything is written and on the disk."""
        with self._disk():
            self._sync()

    def publish(self) -> None:
        """Take the target's place."""
        self._close_if_it_must_be()
        publish(self.path, self.target, 0o666)
        self.journal.unlink(missing_ok=True)
        self._file.close()

    def keep(self) -> None:
        """Leave what is saved for a later run."""
        self._file.close()

    def abandon(self) -> None:
        """Leave nothing."""
        self._close_if_it_must_be()
        self.journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file.close()

    def _close_if_it_must_be(self) -> None:
        """Elsewhere the lock is held until the name is gone, so that nobody writes on under the target's name."""
        if os.name == "nt":
            self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _disk(self):
        try:
            with full_disk_told(self.target.parent):
                yield
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise DiskSpaceError(
                f"{self.target} may not become as long as it has to; nothing was kept",
                hint="ulimit -f unlimited, or a folder on a disk that takes larger files",
            ) from error


def _is_locked_elsewhere(file: BinaryIO) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False
