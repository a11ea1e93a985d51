"""From what a person typed to a GGUF file on this machine.

Knows the order (file, alias, stored, network), the default model, and combined files: a base with a gate pack applied,
built once, kept by both hashes, and built again when its bytes change. Does not open the file it returns.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import LiquidError, NotFoundError, UsageError
from . import address, default_model, pull, store
from .choose import GATE_PACK, choose
from .home import disk_set_by, folder, known_sha256
from .refs import Reference, is_spelled_like_ref, parse_ref, split_gates
from .transport import Progress


@dataclass(frozen=True)
class ResolvedModel:
    """A file to load. `base` and `pack` say what a combined file was made of; `notes` is for people."""

    path: Path
    ref: str
    base: Path | None = None
    pack: Path | None = None
    notes: tuple[str, ...] = field(default=())


def resolve_model(
    ref: str | None, *, gates: str | None = None, offline: bool = False, progress: Progress | None = None
) -> ResolvedModel:
    """The file meant by `ref`, fetched if it is not here; None is the default model with its gates applied."""
    name, with_gates = split_gates(ref) if ref else (default_model.ALIAS, gates is None)
    path = resolve_file(name, offline=offline, progress=progress)
    if gates is not None:
        return combined(path, _pack_file(gates, offline=offline, progress=progress), ref or name, progress)
    if not with_gates:
        return ResolvedModel(path, name)
    if pack := _builtin_pack(path) or _repository_pack(name, offline, progress):
        return combined(path, pack, ref or name, progress)
    if ref:
        raise NotFoundError(f"there is no built-in gate pack for {name}", hint="--gates PACK names one of your own")
    return ResolvedModel(path, name, notes=("no gate pack is built in for the default model: every layer will run",))


def resolve_file(
    name: str,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    update: bool = False,
    planned: Callable[[pull.PullPlan], object] = lambda plan: None,
) -> Path:
    """A plain reference to its file. With `update` the hub is asked even if a version is stored; its `planned` is told
    what will be fetched, before it is."""
    if _is_file(name):
        return Path(name)
    name = store.aliases().get(name, name)
    if name == default_model.ALIAS:
        return _default(offline, progress)
    ref = parse_ref(name)
    here = _stored(name, ref)
    if here and (ref.kind == "local" or offline or not update or _hub_is_off()):
        return here
    if ref.kind == "local" or _is_folder(name):
        raise _missing(name)
    if offline:
        raise NotFoundError(f"{name} is not on this machine", hint=f"liquid pull {name}")
    if ref.kind == "url":
        return address.fetch(ref, progress)
    found = pull.plan(ref)
    planned(found)
    return pull.run(found, progress)[0]


def plan_pull(ref: str | None) -> dict[str, Any]:
    """What `pull` would fetch: files, their sizes, the bytes still missing; of the hub also the `plan` itself."""
    name = split_gates(ref)[0] if ref else default_model.ALIAS
    name = store.aliases().get(name, name)
    if name == default_model.ALIAS:
        missing_bytes = 0 if default_model.stored() else default_model.SIZE_BYTES
        file = {"path": default_model.FILE, "size_bytes": default_model.SIZE_BYTES, "sha256": default_model.SHA256}
        return {"size_bytes": default_model.SIZE_BYTES, "missing_bytes": missing_bytes, "files": [file]}
    parsed = parse_ref(name)
    if parsed.kind == "hub" and not _is_file(name):
        found = pull.plan(parsed)
        return {**found.as_json(), "plan": found}
    return address.plan(parsed) if parsed.kind == "url" else _plan_stored(resolve_file(name))


def _plan_stored(path: Path) -> dict[str, Any]:
    size_bytes = path.stat().st_size
    return {"size_bytes": size_bytes, "missing_bytes": 0, "files": [{"path": str(path), "size_bytes": size_bytes}]}


def name_alias(ref: str, alias: str) -> str:
    """Give what `ref` means here another name; what the name now stands for."""
    target = store.aliases().get(ref, ref)
    if alias == default_model.ALIAS:
        raise UsageError(f"{alias} is the default model's own name")
    path = resolve_model(target, offline=True).path
    if _is_file(target):
        target = str(path.absolute())
    store.set_alias(alias, target)
    return target


def looks_like_ref(text: str) -> bool:
    """Is this a model (an existing file, something stored, or spelled like a reference) or a prompt?"""
    name = split_gates(text)[0]
    if is_spelled_like_ref(text) or name == default_model.ALIAS or name in store.aliases():
        return True
    if not name or "\n" in name or len(name) > 255:
        return False
    return _is_file(name) or any(name == model.name for model in store.stored_models())


def combined(base: Path, pack: Path, ref: str, progress: Progress | None = None) -> ResolvedModel:
    """The base with the pack applied, from $LIQUID_HOME/combined if it was made before."""
    from ..gates.apply import apply_pack

    base_sha256 = store.sha256_by_name(base) or known_sha256(base)
    target = folder("combined") / f"{_stem(base)}+{_stem(pack)}.{base_sha256[:8]}-{known_sha256(pack)[:8]}.gguf"
    if not target.is_file() or store.sha256_by_name(target) not in (None, known_sha256(target)):
        with disk_set_by("LIQUID_HOME"):
            apply_pack(base, pack, target, progress)
        store.remember_sha256(target, known_sha256(target))
        store.remember_origin(target, base, pack)
    return ResolvedModel(target, ref, base, pack)


def _default(offline: bool, progress: Progress | None) -> Path:
    if here := default_model.stored():
        default_model.check(here)
        return here
    if offline:
        raise NotFoundError("the default model is not on this machine yet", hint="liquid pull")
    return default_model.fetch(progress)


def _stored(name: str, ref: Reference) -> Path | None:
    """Something fetched or built before, by the name `liquid list` gives it or by its reference."""
    if _is_file(name):
        return Path(name)
    if ref.kind == "url":
        return address.stored(ref)
    for model in store.stored_models():
        if model.name == name:
            return model.path
    for snapshot, files in store.stored_snapshots(ref) if ref.kind == "hub" else ():
        with contextlib.suppress(NotFoundError):
            return snapshot / choose(ref.repo_id or "", files, ref.tag, ref.file)[0]
    return None


def _hub_is_off() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_file(name: str) -> bool:
    return os.path.isfile(name)  # noqa: PTH113 - unlike pathlib's, it says no to a name that is too long for a path


def _is_folder(name: str) -> bool:
    return os.path.isdir(name)  # noqa: PTH112


def _missing(name: str) -> LiquidError:
    if _is_folder(name):
        of_the_hub = f"; hf.co/{name} is the hub's" if name.strip("/").count("/") == 1 == name.count("/") else ""
        hint = f"liquid convert {name} makes one of it{of_the_hub}"
        return UsageError(f"{name} is a folder, a GGUF file was expected", hint=hint)
    if os.path.exists(name):  # noqa: PTH110 - says no to a name that is too long
        return UsageError(f"{name} is a device or pipe, a GGUF file was expected")
    kind = "file" if "/" in name or name.endswith(".gguf") else "model"
    hint = "liquid list shows what is here, liquid pull fetches more"
    return NotFoundError(f"there is no {kind} {name[:200]}", hint=hint)


def _pack_file(gates: str, *, offline: bool, progress: Progress | None) -> Path:
    path = resolve_file(gates, offline=offline, progress=progress)
    if not path.is_file():
        raise NotFoundError(f"there is no gate pack {gates}")
    return path


def _builtin_pack(base: Path) -> Path | None:
    """The package's own pack for this file, or for the model it is a quantization of; None for a fine-tune of that."""
    from ..gates import builtin_pack_for
    from ..gates.identity import base_identity, norms_sha256
    from ..gates.pack import read_pack
    from ..gguf_file import open_gguf

    sha256 = store.sha256_by_name(base)
    if pack := sha256 and builtin_pack_for(sha256):
        return pack
    with open_gguf(base) as f:
        pack = builtin_pack_for(norms_sha256(f))
        return pack if pack and not read_pack(pack).base.difference(base_identity(f)) else None


def _repository_pack(name: str, offline: bool, progress: Progress | None) -> Path | None:
    """The pack that lies beside a model in its repository, as `gates.gguf` or `NAME.gates.gguf`."""
    ref = parse_ref(store.aliases().get(name, name))
    if ref.kind != "hub":
        return None
    for snapshot, files in store.stored_snapshots(ref):
        if found := [file for file in files if GATE_PACK.search(file)]:
            return snapshot / found[0]
    if offline:
        return None
    with contextlib.suppress(NotFoundError):
        pull.pull_snapshot(f"hf.co/{ref.repo_id}", revision=ref.revision, patterns=("*gates.gguf",), progress=progress)
        return _repository_pack(name, True, None)
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gguf")
