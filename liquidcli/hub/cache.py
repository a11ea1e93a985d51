"""The hub's cache as its own library lays it out: blobs named by their hash, snapshots of links, refs to commits.

Knows where a file of a repository lies, who may write it now, and how it is linked once it is whole. Fetches nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import IntegrityError, quote
from ..files import sha256_file
from .home import folder, hub_cache, liquid_home

_LOOK_S = 0.5  # how often a process that waits for another one looks how far that is
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_OUTSIDE = re.compile(r"^$|^/|^[A-Za-z]:|\\|(^|/)\.{0,2}(/|$)")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size_bytes: int
    etag: str  # git's sha1 of a small file, sha256 of a large one

    @property
    def sha256(self) -> str | None:
        return self.etag if len(self.etag) == 64 else None

    def digest(self):
        """A fresh hash of the kind that names this file."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size_bytes)  # ref: git hash-object


@dataclass(frozen=True)
class Partial:
    """A download that is not whole, and what it is a part of."""

    repo_id: str
    path: str
    size_bytes: int
    etag: str

    @property
    def part(self) -> Path:
        return part_of(blobs(self.repo_id), self.etag)


def repository_folder(repo_id: str) -> Path:
    return hub_cache() / f"models--{repo_id.replace('/', '--')}"


def blobs(repo_id: str) -> Path:
    return repository_folder(repo_id) / "blobs"


def part_of(blobs: Path, etag: str) -> Path:
    """The hub's own name for it."""
    return blobs / f"{etag}.incomplete"


def check_inside(repo_id: str, path: str) -> None:
    """IntegrityError for a file name that leads out of its repository, or that no terminal can show."""
    if _UNSEEN.search(path):
        raise IntegrityError(f"{repo_id} lists the file {quote(path)}, with control characters", hint="do not trust it")
    if _OUTSIDE.search(path):
        raise IntegrityError(
            f"{repo_id} lists the file {quote(path)}, whose name leads out of the repository", hint="do not trust it"
        )


def link(repo_id: str, revision: str, commit: str, file: RemoteFile) -> Path:
    """The file in the snapshot of its commit; where links are impossible a copy, as the hub's library does it."""
    root = repository_folder(repo_id)
    snapshot, blob = root / "snapshots" / commit, root / "blobs" / file.etag
    pointer = snapshot / file.path
    if not pointer.is_symlink() or os.path.realpath(pointer) != os.path.realpath(blob):
        pointer.parent.mkdir(parents=True, exist_ok=True)
        _put(blob, pointer)
    if revision != commit:
        _point(root / "refs" / revision, commit)
    return pointer


def _put(blob: Path, pointer: Path) -> None:
    fresh = pointer.with_name(f".{os.getpid()}.{time.monotonic_ns()}")
    try:
        fresh.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        shutil.copyfile(blob, fresh)
    fresh.replace(pointer)


def _point(ref: Path, commit: str) -> None:
    if ref.is_file() and ref.read_text(encoding="utf-8") == commit:
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    fresh.write_text(commit, encoding="utf-8")
    fresh.replace(ref)


@contextlib.contextmanager
def sole_writer(lock: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Wait until nobody else writes what this lock is for; `waiting` is called every now and then."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=_LOOK_S))
                break
            except Timeout:
                waiting()
        yield


def blob_lock(repo_id: str, etag: str) -> Path:
    """The hub library's own lock for this blob."""
    return hub_cache() / ".locks" / repository_folder(repo_id).name / f"{etag}.lock"


def is_written_now(lock: Path) -> bool:
    """Does a process hold this lock?"""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    try:
        with WeakFileLock(lock, timeout=0.01):
            return False
    except (Timeout, OSError):
        return lock.exists()


def digest_of(path: Path, file: RemoteFile) -> str:
    if file.sha256:
        return sha256_file(path)
    digest = file.digest()
    digest.update(path.read_bytes())
    return digest.hexdigest()


def remember_partial(partial: Partial) -> None:
    """So that `liquid list` can say what a part is of; beside the cache, which holds no file of our own."""
    with contextlib.suppress(OSError):
        (folder("partial") / f"{partial.etag}.json").write_text(json.dumps(asdict(partial)), encoding="utf-8")


def forget_partial(etag: str) -> None:
    with contextlib.suppress(OSError):
        (liquid_home() / "partial" / f"{etag}.json").unlink(missing_ok=True)


def forget_gone() -> None:
    """Drop records whose part is not there any more, whoever removed it."""
    known = {partial.etag for partial in partials()}
    for record in (liquid_home() / "partial").glob("*.json"):
        if record.stem not in known:
            record.unlink(missing_ok=True)


def partials() -> list[Partial]:
    """Downloads that were begun and are not whole, as far as they are known by name."""
    found = []
    for record in sorted((liquid_home() / "partial").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            partial = Partial(**json.loads(record.read_text(encoding="utf-8")))
            if _ETAG.fullmatch(partial.etag) and partial.size_bytes >= 0 and partial.part.is_file():
                found.append(partial)
    return found
