"""What is on this machine: models in the hub's cache, models and combined files under $LIQUID_HOME, aliases.

Reads the hub's layout (snapshots of links into blobs named by sha256) and never writes into it. Does not fetch.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import NotFoundError, UsageError
from .choose import model_files, quant_tag, shards
from .home import hub_cache, liquid_home, read_state, update_state
from .refs import Reference

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ALIAS = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class StoredModel:
    """One model on this machine; `paths` are its shards in order, `name` is what every command accepts."""

    name: str
    paths: tuple[Path, ...]
    size_bytes: int
    modified: float  # seconds since the epoch
    source: Literal["hub", "local", "combined"]
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None

    @property
    def path(self) -> Path:
        return self.paths[0]

    def as_json(self) -> dict:
        return {
            "name": self.name,
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "modified": self.modified,
            "source": self.source,
            "sha256": sha256_by_name(self.path),
        }


def stored_models() -> list[StoredModel]:
    """Everything, newest first."""
    found = [*_hub_models(), *_own_models("models", "local"), *_own_models("combined", "combined")]
    return sorted(found, key=lambda model: -model.modified)


def sha256_by_name(path: Path) -> str | None:
    """The hub's cache names a blob by its sha256; for our own files the store remembers it."""
    blob = Path(os.path.realpath(path))
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name
    return read_state("sha256.json").get(path.name) if liquid_home() in path.parents else None


def remember_sha256(path: Path, sha256: str) -> None:
    update_state("sha256.json", lambda known: {**known, path.name: sha256})


def remember_origin(target: Path, base: Path, pack: Path) -> None:
    """What a combined file was made of, for people and for `prune`."""
    origin = {"base": str(base), "pack": str(pack)}
    update_state("combined.json", lambda known: {**known, target.name: origin})


def origins() -> dict[str, dict[str, str]]:
    return read_state("combined.json")


def stored_snapshots(ref: Reference) -> Iterator[tuple[Path, list[str]]]:
    """Stored snapshots of a hub reference, the best first, each with the names of its GGUF files."""
    folder = hub_cache() / f"models--{(ref.repo_id or '').replace('/', '--')}"
    for snapshot in snapshots(folder, ref.revision):
        yield snapshot, gguf_files(snapshot)


def aliases() -> dict[str, str]:
    return {str(name): str(target) for name, target in read_state("aliases.json").items()}


def set_alias(name: str, target: str) -> None:
    if not _ALIAS.fullmatch(name) or name.endswith(".gguf"):
        raise UsageError(f"{name!r} cannot be an alias: letters, digits, dot, dash and underscore were expected")
    update_state("aliases.json", lambda known: {**known, name: target})


def remove_alias(name: str) -> None:
    if name not in aliases():
        raise NotFoundError(f"there is no alias {name}", hint="liquid list shows what there is")
    update_state("aliases.json", lambda known: {alias: known[alias] for alias in known if alias != name})


def known_names() -> list[str]:
    """Every name a command accepts without the network."""
    from .default_model import ALIAS

    return list(dict.fromkeys([ALIAS, *sorted(aliases()), *(model.name for model in stored_models())]))


def _hub_models() -> Iterator[StoredModel]:
    for folder in sorted(hub_cache().glob("models--*")):
        repo_id = folder.name.removeprefix("models--").replace("--", "/", 1)
        seen: set[str] = set()
        for snapshot in snapshots(folder, "main"):
            files = gguf_files(snapshot)
            tags = Counter(quant_tag(file) for file in model_files(files))
            for file in model_files(files):
                if file not in seen and set(shards(file)) <= set(files):
                    seen.add(file)
                    yield _hub_model(repo_id, snapshot, file, unique=tags[quant_tag(file)] == 1)


def _hub_model(repo_id: str, snapshot: Path, file: str, *, unique: bool) -> StoredModel:
    paths = tuple(snapshot / part for part in shards(file))
    tag = quant_tag(file)
    name = f"{repo_id}:{tag}" if tag and unique else f"{repo_id}/{file}"
    stats = [path.stat() for path in paths]
    size_bytes, modified = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
    return StoredModel(name, paths, size_bytes, modified, "hub", repo_id, snapshot.name, file)


def snapshots(folder: Path, revision: str) -> list[Path]:
    """Snapshots of a stored repository, the one `revision` points to first; of another revision than main only that."""
    try:
        pinned = folder / "snapshots" / (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        pinned = folder / "snapshots" / revision
    if revision != "main":
        return [pinned] if pinned.is_dir() else []
    others = sorted(folder.glob("snapshots/*"), key=lambda path: -path.stat().st_mtime)
    return sorted(others, key=lambda path: path != pinned)


def gguf_files(snapshot: Path) -> list[str]:
    """GGUF files of a snapshot, by their names in the repository; links to nowhere are left out."""
    found = (path for path in snapshot.rglob("*") if path.suffix.lower() == ".gguf" and path.is_file())
    return sorted(path.relative_to(snapshot).as_posix() for path in found)


def _own_models(folder: str, source: Literal["local", "combined"]) -> Iterator[StoredModel]:
    for path in sorted((liquid_home() / folder).glob("*.gguf")):
        stat = path.stat()
        yield StoredModel(path.name.removesuffix(".gguf"), (path,), stat.st_size, stat.st_mtime, source)
