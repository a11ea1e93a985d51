"""Folders that are either whole or absent: space is checked, one is filled beside the target, synced, renamed.

Knows nothing of what is inside them. Single files are in `files`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import NotFoundError, UsageError
from .files import check_space, claim, full_disk_told, publish, signals_wait, sweep, unwritable


@contextlib.contextmanager
def atomic_folder(path: Path | str, size_bytes: int = 0) -> Iterator[Path]:
    """Yield a folder beside `path` to be filled; on success its files are synced and it is renamed, else it is removed.

    UsageError where something is there already, unless it is an empty folder; NotFoundError for a missing parent.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise UsageError(f"{path} is there already, a new folder was expected", hint="name another folder")
    if not path.parent.is_dir():
        raise NotFoundError(f"the folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path.exists() and (path.samefile(Path.cwd()) or os.path.ismount(path)):
        raise UsageError(f"{path} is the current folder, or where a disk begins", hint="name a new folder")
    sweep(path)
    check_space(path.parent, size_bytes)
    with contextlib.ExitStack() as undo:
        with signals_wait():
            try:
                part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            except OSError as error:
                raise unwritable(path.parent, error) from error
            undo.callback(shutil.rmtree, part, ignore_errors=True)
            with contextlib.suppress(OSError):  # Windows opens no folders
                handle = os.open(part, os.O_RDONLY)
                undo.callback(os.close, handle)
                claim(handle)
        with full_disk_told(path.parent):
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            publish(part, path, 0o777)
