"""Making room and making sure: rm, prune, verify.

Deletes in the hub's cache only through the hub's own library, which never drops a blob another file still links to.
Knows what is garbage: broken-off downloads, versions a newer one replaced, combined files whose base or gate pack is
gone or another.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import LiquidError, NotFoundError, UsageError
from ..files import sha256_file
from . import address, cache, default_model, store
from .choose import model_files, quant_tag, shards
from .home import hub_cache, know_sha256, known_sha256, liquid_home
from .refs import parse_ref
from .store import StoredModel

_STALE_S = 3600.0  # what no lock protects is given up when nobody wrote to it for this long


@dataclass(frozen=True)
class Garbage:
    path: Path
    size_bytes: int
    why: str

    def as_json(self) -> dict:
        return {"path": str(self.path), "size_bytes": self.size_bytes, "why": self.why}


@dataclass(frozen=True)
class Checked:
    """`ok` is None where nobody ever said what the hash should be."""

    name: str
    path: Path
    expected: str | None
    sha256: str
    ok: bool | None

    def as_json(self) -> dict:
        return {
            "name": self.name,
            "path": str(self.path),
            "expected": self.expected,
            "sha256": self.sha256,
            "ok": self.ok,
        }


def find(name: str, *, or_none: bool = False) -> list[StoredModel]:
    """Stored models a name means: exactly one, or all of a repository named without a tag."""
    models = store.stored_models()
    name = store.aliases().get(name, name)
    if name == default_model.ALIAS:
        here = default_model.stored()
        found = [model for model in models if here in model.paths]
    else:
        ref = parse_ref(name)
        is_whole = ref.kind == "hub" and not ref.tag and not ref.file
        spelled = {name, f"{ref.repo_id}:{(ref.tag or '').upper()}", f"{ref.repo_id}/{ref.file}"}
        found = [model for model in models if model.name in spelled or (is_whole and model.repo_id == ref.repo_id)]
    if found or or_none:
        return found
    if os.path.exists(name):  # noqa: PTH110 - says no to a name that is too long
        raise UsageError(
            f"{name} is a file of yours, not one that was pulled", hint="liquid list shows those that were"
        )
    raise NotFoundError(f"{name} is not stored here", hint="liquid list shows what is")


def partials_of(name: str) -> list[cache.Partial]:
    """Downloads broken off that a repository's name means, or the name of their file in it."""
    ref = parse_ref(store.aliases().get(name, name))
    return [
        partial
        for partial in cache.partials()
        if ref.kind == "hub" and partial.repo_id == ref.repo_id
        if not (ref.tag or ref.file) or ref.file == partial.path or (ref.tag or "").upper() == quant_tag(partial.path)
    ]


def remove_partials(partials: list[cache.Partial]) -> int:
    """Delete what came of them; the bytes freed."""
    freed = 0
    for partial in partials:
        if cache.is_written_now(cache.blob_lock(partial.repo_id, partial.etag)):
            said = f"{partial.path} of {partial.repo_id} is being fetched by another process"
            raise LiquidError(said, hint="stop that one first")
        freed += partial.part.stat().st_size
        partial.part.unlink(missing_ok=True)
        cache.forget_partial(partial.etag)
    return freed


def remove(models: list[StoredModel]) -> int:
    """Delete stored models; the bytes freed."""
    freed = 0
    for model in models:
        if model.source != "hub":
            model.path.unlink()
            freed += model.size_bytes
    address.forget(model.path for model in models if model.source != "hub")
    return freed + _remove_from_hub({path for model in models if model.source == "hub" for path in model.paths})


def _remove_from_hub(paths: set[Path]) -> int:
    if not paths:
        return 0
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(hub_cache())
    files = [file for repo in cache.repos for revision in repo.revisions for file in revision.files]
    names = {(path.parts[-1], path.resolve()) for path in paths}
    strategy = cache.delete_files(*(file for file in files if (file.file_name, file.blob_path) in names))
    strategy.execute()
    return strategy.expected_freed_size


def garbage() -> list[Garbage]:
    return [*_broken_off(), *_replaced(), *_orphans()]


def prune(found: list[Garbage]) -> int:
    """Delete what `garbage` found; the bytes freed."""
    links = {item.path for item in found if item.path.is_symlink()}
    for item in found:
        if item.path.is_dir():
            shutil.rmtree(item.path)
        elif item.path not in links:
            item.path.unlink(missing_ok=True)
    _remove_from_hub(links)
    cache.forget_gone()
    return sum(item.size_bytes for item in found)


def verify(models: list[StoredModel], progress: Callable[[int, int, str], None] | None = None) -> Iterator[Checked]:
    """Read every file again and compare its sha256 with the one it was stored under."""
    for model in models:
        for path in model.paths:
            yield _verify(model.name, path, progress)


def _verify(name: str, path: Path, progress: Callable[[int, int, str], None] | None) -> Checked:
    done, total = 0, path.stat().st_size

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total, name)

    expected, found = store.sha256_by_name(path), sha256_file(path, step)
    know_sha256(path, found)  # so that a pull mends what is broken here
    return Checked(name, path, expected, found, None if expected is None else expected == found)


def _broken_off() -> Iterator[Garbage]:
    """Ours are locked while they are written; of other tools' and of unfinished outputs only age can tell."""
    ours = {partial.part: partial for partial in cache.partials()}
    parts = [
        *hub_cache().glob("models--*/blobs/*.incomplete"),
        *(liquid_home() / "models").glob(".*.incomplete"),
        *liquid_home().glob(".*.part"),
        *liquid_home().glob("*/.*.part"),
        *liquid_home().glob(".fetch-*"),
    ]
    for path in parts:
        if path in ours:
            given_up = not cache.is_written_now(cache.blob_lock(ours[path].repo_id, ours[path].etag))
        else:
            given_up = time.time() - path.stat().st_mtime > _STALE_S
        if given_up:
            yield Garbage(path, _size_bytes(path), "a download that was never finished")


def _replaced() -> Iterator[Garbage]:
    """GGUF files of older snapshots whose repository has the same file, other content, in its main branch."""
    for main in hub_cache().glob("models--*/refs/main"):
        snapshots = main.parents[1] / "snapshots"
        pinned = snapshots / main.read_text(encoding="utf-8").strip()
        for snapshot in snapshots.iterdir():
            if snapshot.name not in (pinned.name, default_model.REVISION):
                yield from _replaced_in(snapshot, pinned)


def _replaced_in(snapshot: Path, pinned: Path) -> Iterator[Garbage]:
    for file in model_files(store.gguf_files(snapshot)):
        if (pinned / file).exists() and (pinned / file).resolve() != (snapshot / file).resolve():
            yield from (_replaced_file(snapshot / part) for part in shards(file) if (snapshot / part).exists())


def _replaced_file(path: Path) -> Garbage:
    return Garbage(path, path.stat().st_size, "a newer version of it is stored")


def _orphans() -> Iterator[Garbage]:
    origins = store.origins()
    for path in (liquid_home() / "combined").glob("*.gguf"):
        origin = origins.get(path.name, {})
        if why := _outlived(path.name, origin.get("base"), origin.get("pack")):
            yield Garbage(path, path.stat().st_size, why)


def _outlived(name: str, base: str | None, pack: str | None) -> str:
    """Why a combined file will not be used again, as far as its origins are known; a pack is small enough to hash."""
    if base and not Path(base).exists():
        return "its base model is gone"
    if pack and not Path(pack).exists():
        return "its gate pack is gone"
    if pack and not name.endswith(f"-{known_sha256(Path(pack))[:8]}.gguf"):
        return "its gate pack was replaced by another"
    return ""


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
