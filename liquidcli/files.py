"""Files that are either whole or absent: space is checked, `.part` is written beside the target, synced and renamed.

Knows nothing of what is inside the files.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .amounts import size_text
from .errors import DiskSpaceError, LiquidError, NotFoundError, UsageError

_CHUNK_BYTES = 1 << 20
_LEFT_S = 10.0  # younger parts may belong to a writer that has no lock on them yet


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise DiskSpaceError, with both numbers, when `folder`'s disk has less than `needed_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        free, needed = size_text(free_bytes), size_text(needed_bytes)
        if free == needed:
            free, needed = f"{free_bytes} bytes", f"{needed_bytes}"
        raise DiskSpaceError(
            f"{folder} has {free} free and this needs {needed}",
            hint="free some space, or name another folder for the output",
        )


def output_target(path: Path) -> Path:
    """Where a file will lie, links followed; UsageError for a folder or a device, NotFoundError without a parent."""
    if path.is_dir():
        example = path / f"{'model' if path.suffix in ('', '.gguf') else 'file'}{path.suffix or '.gguf'}"
        raise UsageError(f"{path} is a folder, a file name was expected", hint=f"try {example}")
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file; the output would take its place", hint="name a file")
    if not path.parent.is_dir():
        raise NotFoundError(f"the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    return path


def check_apart(out: Path, *inputs: Path | None, hint: str = "name another file with -o") -> None:
    """UsageError where `out` would take the place of what it is made from, whatever its name."""
    if out.exists() and any(path and path.exists() and out.samefile(path) for path in inputs):
        raise UsageError(f"{out} is also the input", hint=hint)


def unwritable(folder: Path, error: OSError) -> LiquidError:
    """A file could not even be begun."""
    said = str(error.strerror or error)
    reason = f"{said[:1].lower()}{said[1:]}"
    return LiquidError(f"cannot write in {folder}: {reason}", hint="name another folder for the output")


@contextlib.contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """DiskSpaceError instead of the system's, for writing in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskSpaceError(
            f"the disk of {folder} is full; nothing was kept",
            hint="free some space, or name another folder for the output",
        ) from error


def publish(part: Path, path: Path, mode: int) -> None:
    """Give a finished file or folder its name, and `mode`, narrowed by the umask."""
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(mode & ~umask)
    part.replace(path)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """For the moment in which a file is begun: Ctrl-C and requests to leave come once somebody is to remove it."""
    if threading.current_thread() is not threading.main_thread():  # no other is ever interrupted
        yield
        return
    came: list[int] = []
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in known if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def atomic_output(path: Path | str, size_bytes: int = 0, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a `.part` path beside `path`; on success it is synced and renamed over `path`, else removed.

    A link is followed and stays. `mode` is narrowed by the umask. Raises UsageError for a folder or a device,
    NotFoundError for a missing parent, DiskSpaceError before or during the writing.
    """
    path = output_target(Path(path))
    sweep(path)
    check_space(path.parent, size_bytes)
    with contextlib.ExitStack() as undo:
        with signals_wait():
            try:
                handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            except OSError as error:
                raise unwritable(path.parent, error) from error
            part = Path(name)
            undo.callback(os.close, handle)
            undo.callback(part.unlink, missing_ok=True)
        with full_disk_told(path.parent):
            claim(handle)
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            publish(part, path, mode)


def sweep(path: Path) -> None:
    """Remove what killed writers of the same file or folder left beside it; a living one holds a lock on its part."""
    own = re.compile(re.escape(f".{path.name}.") + r"[a-z0-9_]{8}\.part")  # as tempfile names them
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not own.fullmatch(part.name) or part.is_symlink():
            continue
        with contextlib.suppress(OSError):
            left = os.open(part, os.O_RDONLY)
            try:
                if time.time() - part.stat().st_mtime > _LEFT_S and claim(left):
                    shutil.rmtree(part) if part.is_dir() else part.unlink()
            finally:
                os.close(left)


def claim(handle: int) -> bool:
    """Is this file ours from now on? No where locks are unknown."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def sha256_file(path: Path | str, progress: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file, read in 1 MiB steps; `progress` is told the bytes of each step."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()
