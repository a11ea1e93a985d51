"""Fetching from the hub: plan (what, how big, is there room), then run (resume, check, hand to the hub's cache).

Thin over huggingface_hub, which keeps the layout, the tokens and the transport. Added here is what it lacks: a
download that goes on where it stopped, and a hash that is checked. Does not know aliases or the default model.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import IntegrityError, NetworkError, NotFoundError, UsageError
from ..files import check_space, sha256_file
from .choose import choose
from .home import disk_set_by, hub_cache
from .refs import Reference, parse_ref
from .transport import Progress, fetch_into, hub_errors, within

_METADATA_LIMIT_S = 20.0
_HTTP_LIMIT_BYTES = 50_000_000_000  # above, the hub serves files through Xet alone
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's sha1 of a small file, sha256 of a large one
_CHECKPOINT_TEXTS = ("*.json", "*.model", "*.jinja", "*.txt")
_CHECKPOINT_WEIGHTS = ("model*.safetensors", "*.safetensors")  # the first that matches anything


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size_bytes: int
    etag: str

    @property
    def sha256(self) -> str | None:
        return self.etag if len(self.etag) == 64 else None


@dataclass(frozen=True)
class PullPlan:
    """Files of one commit; `missing_bytes` is what still has to come over the wire."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    missing_bytes: int

    def as_json(self) -> dict:
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "commit": self.commit,
            "size_bytes": sum(file.size_bytes for file in self.files),
            "missing_bytes": self.missing_bytes,
            "files": [{"path": f.path, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in self.files],
        }


def plan(ref: Reference, *, limit_s: float = _METADATA_LIMIT_S) -> PullPlan:
    """Ask the hub which commit and which files of it are meant."""
    repo_id, commit, files = _repository(ref.repo_id or "", ref.revision, limit_s)
    wanted = choose(repo_id, files, ref.tag, ref.file)
    return _plan(repo_id, ref.revision, commit, [files[path] for path in wanted])


def run(plan: PullPlan, progress: Progress | None = None) -> list[Path]:
    """Fetch what is missing; the paths of all files, in the hub's cache. DiskSpaceError before a byte is fetched."""
    with disk_set_by("HF_HOME"), hub_errors(plan.repo_id):
        if plan.missing_bytes:
            check_space(_existing(hub_cache()), plan.missing_bytes)
        return [_fetch(plan, file, progress) for file in plan.files]


def pull_snapshot(
    ref: str, *, revision: str | None = None, patterns: tuple[str, ...] | None = None, progress: Progress | None = None
) -> Path:
    """The folder of a hub repository's checkpoint (configuration, tokenizer, safetensors), fetched and checked."""
    found = parse_ref(ref)
    if found.kind != "hub" or found.repo_id is None:
        raise UsageError(f"{ref} is no repository on the hub", hint="write owner/name or a folder on this machine")
    revision = revision or found.revision
    repo_id, commit, files = _repository(found.repo_id, revision, _METADATA_LIMIT_S)
    wanted = _matching(files, patterns) if patterns else _checkpoint(repo_id, files)
    if not wanted:
        raise NotFoundError(f"{repo_id} has no file like {', '.join(patterns or ())}")
    paths = run(_plan(repo_id, revision, commit, wanted), progress)
    return paths[0].parents[wanted[0].path.count("/")]


def _matching(files: dict[str, RemoteFile], patterns: tuple[str, ...]) -> list[RemoteFile]:
    at_the_top = (file for path, file in files.items() if "/" not in path)
    return [file for file in at_the_top if any(fnmatch(file.path, pattern) for pattern in patterns)]


def _checkpoint(repo_id: str, files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """Texts and safetensors; pickled weights are never fetched."""
    for pattern in _CHECKPOINT_WEIGHTS:
        if weights := _matching(files, (pattern,)):
            return _matching(files, _CHECKPOINT_TEXTS) + weights
    raise NotFoundError(f"{repo_id} has no safetensors weights", hint="other kinds of checkpoints are not read")


def _repository(repo_id: str, revision: str, limit_s: float) -> tuple[str, str, dict[str, RemoteFile]]:
    """(repo_id, commit, files by path) in one request."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    with hub_errors(repo_id):
        info = within(
            limit_s,
            "the hub",
            lambda: HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=limit_s),
        )
    files = {}
    for entry in info.siblings or []:
        etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if etag is None or not _ETAG.fullmatch(etag) or entry.size is None:
            raise NetworkError(f"the hub's answer about {repo_id} lacks the size or the hash of {entry.rfilename}")
        files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size, etag)
    return repo_id, info.sha or revision, files


def _plan(repo_id: str, revision: str, commit: str, files: list[RemoteFile]) -> PullPlan:
    blobs = _blobs(repo_id)
    missing = {file.etag: file for file in files if not (blobs / file.etag).exists()}.values()
    missing_bytes = sum(max(0, file.size_bytes - _size(_part(blobs, file))) for file in missing)
    return PullPlan(repo_id, revision, commit, tuple(files), missing_bytes)


def _fetch(plan: PullPlan, file: RemoteFile, progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download

    blob = _blobs(plan.repo_id) / file.etag
    by_hub = not blob.exists() and file.size_bytes > _HTTP_LIMIT_BYTES
    if not blob.exists() and not by_hub:
        _download_once(plan, file, blob, progress)
    linked = Path(hf_hub_download(plan.repo_id, file.path, revision=plan.revision))
    is_named = linked.is_symlink() and linked.readlink().name == file.etag
    if (by_hub or not is_named) and _digest(linked, file) != file.etag:
        raise IntegrityError(f"{file.path} of {plan.repo_id} is not what the hub names", hint="run the command again")
    return linked


def _download_once(plan: PullPlan, file: RemoteFile, blob: Path, progress: Progress | None) -> None:
    """Under the hub library's own lock for this blob."""
    from huggingface_hub.utils import WeakFileLock

    lock = hub_cache() / ".locks" / blob.parent.parent.name / f"{file.etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download(plan, file, blob, progress)


def _download(plan: PullPlan, file: RemoteFile, blob: Path, progress: Progress | None) -> None:
    """Into `<etag>.incomplete` (the hub's own name for it), from where an earlier try stopped; checked, renamed."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    part = _part(blob.parent, file)
    url = hf_hub_url(plan.repo_id, file.path, revision=plan.commit)
    fetch_into(part, url, file.size_bytes, file.path, build_hf_headers(), progress)
    if _digest(part, file) != file.etag:
        part.unlink()
        raise IntegrityError(
            f"{file.path} of {plan.repo_id} arrived with another hash than the hub names; it was thrown away",
            hint="run the command again",
        )
    part.replace(blob)


def _digest(path: Path, file: RemoteFile) -> str:
    if file.sha256:
        return sha256_file(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # ref: git hash-object


def _blobs(repo_id: str) -> Path:
    return hub_cache() / f"models--{repo_id.replace('/', '--')}" / "blobs"


def _part(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.etag}.incomplete"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
