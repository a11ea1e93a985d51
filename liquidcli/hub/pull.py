"""Fetching from the hub: plan (what of which commit, how big, is there room), then run (fetch, check, link).

One commit per pull: everything is asked for by it. Several files come at once; processes that want the same file share
one download; what lies there already is believed after its hash. Does not know aliases or the default model.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, NetworkError, NotFoundError, UsageError
from ..files import check_space
from . import cache
from .cache import Partial, RemoteFile
from .choose import choose, model_files, shards
from .download import Source, fetch, patiently
from .home import disk_set_by, hub_cache, know_sha256, known_sha256
from .refs import Reference, parse_ref
from .together import together
from .transport import Progress, hub_errors, request_headers, token_for, within

_METADATA_LIMIT_S = 20.0
_HTTP_LIMIT_BYTES = 50_000_000_000  # above, the hub serves files through Xet alone
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHECKPOINT_TEXTS = ("*.json", "*.model", "*.jinja", "*.txt", "README.md")
_CHECKPOINT_TEMPLATES = ("additional_chat_templates/*.jinja",)
_CHECKPOINT_WEIGHTS = ("model*.safetensors", "*.safetensors")  # the first that matches anything


@dataclass(frozen=True)
class PullPlan:
    """Files of one commit; `missing_bytes` is what still has to come over the wire."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    missing_bytes: int
    choices: tuple[tuple[str, int], ...] = ()  # the models of the repository, each with its bytes

    @property
    def distinct(self) -> list[RemoteFile]:
        """One file of each content."""
        return list({file.etag: file for file in self.files}.values())

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
    found = _plan(repo_id, ref.revision, commit, [files[path] for path in wanted])
    whole = [path for path in model_files(files) if set(shards(path)) <= set(files)]
    return replace(found, choices=tuple((path, sum(files[p].size_bytes for p in shards(path))) for path in whole))


def run(plan: PullPlan, progress: Progress | None = None) -> list[Path]:
    """Fetch what is missing; the paths of all files, in the hub's cache. DiskSpaceError before a byte is fetched."""
    with disk_set_by("HF_HOME"), hub_errors(plan.repo_id):
        if plan.missing_bytes:
            check_space(_existing(hub_cache()), plan.missing_bytes)
        absent = [file for file in plan.distinct if not _is_right(_blob(plan, file), file)]
        jobs = [functools.partial(_bring, plan, file) for file in absent]
        if jobs:
            what = f"{plan.repo_id} ({len(jobs)} files)"
            together(jobs, sum(file.size_bytes for file in absent), what, progress)
        return [cache.link(plan.repo_id, plan.revision, plan.commit, file) for file in plan.files]


def pull_snapshot(
    ref: str, *, revision: str | None = None, patterns: tuple[str, ...] | None = None, progress: Progress | None = None
) -> Path:
    """The folder of a hub repository's checkpoint (configuration, tokenizer, safetensors), fetched and checked."""
    found = parse_ref(ref)
    if found.kind != "hub" or found.repo_id is None:
        raise UsageError(f"{ref} is no repository on the hub", hint="write owner/name or a folder on this machine")
    revision = revision or found.revision
    repo_id, commit, files = _repository(found.repo_id, revision, _METADATA_LIMIT_S)
    wanted = _like(files, patterns) if patterns else _checkpoint(repo_id, files)
    if not wanted:
        said = f"{repo_id} has no file like {', '.join(patterns or ())}"
        raise NotFoundError(said, hint=f"look at https://huggingface.co/{repo_id}/tree/{revision}")
    paths = run(_plan(repo_id, revision, commit, wanted), progress)
    return paths[0].parents[wanted[0].path.count("/")]


def _matching(files: dict[str, RemoteFile], patterns: tuple[str, ...]) -> list[RemoteFile]:
    at_the_top = (file for path, file in files.items() if "/" not in path)
    return [file for file in at_the_top if any(fnmatch(file.path, pattern) for pattern in patterns)]


def _like(files: dict[str, RemoteFile], patterns: tuple[str, ...]) -> list[RemoteFile]:
    """As the hub's tools match: by the path, in which a star also stands for folders."""
    return [file for path, file in files.items() if any(fnmatch(path, pattern) for pattern in patterns)]


def _checkpoint(repo_id: str, files: dict[str, RemoteFile]) -> list[RemoteFile]:
    """Texts and safetensors; pickled weights are never fetched."""
    for pattern in _CHECKPOINT_WEIGHTS:
        if weights := _matching(files, (pattern,)):
            return _matching(files, _CHECKPOINT_TEXTS) + _like(files, _CHECKPOINT_TEMPLATES) + weights
    raise NotFoundError(f"{repo_id} has no safetensors weights", hint="other kinds of checkpoints are not read")


def _repository(repo_id: str, revision: str, limit_s: float) -> tuple[str, str, dict[str, RemoteFile]]:
    """(repo_id, commit, files by path) in one request."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    token = token_for(constants.ENDPOINT)

    def ask() -> Any:
        return HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=limit_s, token=token)

    with hub_errors(repo_id if revision == "main" else f"{repo_id}@{revision}"):
        info = within(limit_s, "the hub", lambda: patiently(ask, limit_s / 2))
    if not _COMMIT.fullmatch(info.sha or ""):
        raise NetworkError(f"the hub's answer about {repo_id} names no commit", hint="is HF_ENDPOINT a hub?")
    files = {}
    for entry in info.siblings or []:
        etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
        if etag is None or not _ETAG.fullmatch(etag) or entry.size is None:
            raise NetworkError(f"the hub's answer about {repo_id} lacks the size or the hash of {entry.rfilename}")
        files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size, etag)
    return repo_id, str(info.sha), files


def _plan(repo_id: str, revision: str, commit: str, files: list[RemoteFile]) -> PullPlan:
    for file in files:
        cache.check_inside(repo_id, file.path)
    plan = PullPlan(repo_id, revision, commit, tuple(files), 0)
    missing = [file for file in plan.distinct if _size(_blob(plan, file)) != file.size_bytes]
    parts = {file.etag: _size(cache.part_of(cache.blobs(repo_id), file.etag)) for file in missing}
    return replace(plan, missing_bytes=sum(max(0, file.size_bytes - parts[file.etag]) for file in missing))


def _blob(plan: PullPlan, file: RemoteFile) -> Path:
    return cache.blobs(plan.repo_id) / file.etag


def _bring(plan: PullPlan, file: RemoteFile, progress: Progress, stop: threading.Event) -> None:
    """The blob of a file, unless another process brings it first."""
    blob = _blob(plan, file)
    part = cache.part_of(blob.parent, file.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)

    def watch() -> None:
        progress(_size(part), file.size_bytes, f"{file.path} (another process fetches it)")

    with cache.sole_writer(cache.blob_lock(plan.repo_id, file.etag), watch):
        if _is_right(blob, file):
            return
        blob.unlink(missing_ok=True)
        if file.size_bytes > _HTTP_LIMIT_BYTES:
            _by_the_library(plan, file)
        else:
            _download(plan, file, part, progress, stop)
            part.replace(blob)
            know_sha256(blob, file.sha256)
    cache.forget_partial(file.etag)


def _is_right(blob: Path, file: RemoteFile) -> bool:
    """Is it stored with the bytes it is named by? Read once, and again when size or time change."""
    if _size(blob) != file.size_bytes or not blob.exists():
        return False
    return (known_sha256(blob) if file.sha256 else cache.digest_of(blob, file)) == file.etag


def _download(plan: PullPlan, file: RemoteFile, part: Path, progress: Progress, stop: threading.Event) -> None:
    from huggingface_hub import hf_hub_url

    cache.remember_partial(Partial(plan.repo_id, file.path, file.size_bytes, file.etag))
    url = hf_hub_url(plan.repo_id, file.path, revision=plan.commit)
    source = Source(url, file.path, file.size_bytes, request_headers(url))
    if fetch(part, source, progress, digest=file.digest, stop=stop) != file.etag:
        part.unlink()
        cache.forget_partial(file.etag)
        raise IntegrityError(
            f"{file.path} of {plan.repo_id} arrived with another hash than the hub names; it was thrown away",
            hint="run the command again",
        )


def _by_the_library(plan: PullPlan, file: RemoteFile) -> None:
    from huggingface_hub import constants, hf_hub_download

    path = hf_hub_download(plan.repo_id, file.path, revision=plan.commit, token=token_for(constants.ENDPOINT))
    if cache.digest_of(Path(path), file) != file.etag:
        raise IntegrityError(f"{file.path} of {plan.repo_id} is not what the hub names", hint="run the command again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
