"""Folders and small state: $LIQUID_HOME for everything of our own, the hub's cache for what comes from the hub.

Knows where things lie and how to keep a small JSON file whole. Does not know what a model is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DiskSpaceError, LiquidError
from ..files import atomic_output, sha256_file


def liquid_home() -> Path:
    """$LIQUID_HOME, else $XDG_DATA_HOME/liquid, else ~/.local/share/liquid."""
    if home := os.environ.get("LIQUID_HOME"):
        return Path(home).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "liquid"


def folder(name: str) -> Path:
    """A folder under $LIQUID_HOME, made if need be."""
    path = liquid_home() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set LIQUID_HOME to a folder of yours"
        raise LiquidError(f"cannot make the folder {path}: {error.strerror}", hint=hint) from error
    return path


@contextlib.contextmanager
def disk_set_by(variable: str) -> Iterator[None]:
    """Inside, what did not fit on a disk belongs where this environment variable says."""
    try:
        yield
    except DiskSpaceError as error:
        error.hint = f"free some space (liquid prune), or set {variable} to a folder on another disk"
        raise


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories, by its own rules (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def read_state(name: str) -> dict[str, Any]:
    """A JSON object under $LIQUID_HOME; an absent or broken one is empty."""
    try:
        state = json.loads((liquid_home() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(name: str, state: dict[str, Any]) -> None:
    with disk_set_by("LIQUID_HOME"), atomic_output(folder(".") / name) as part:
        part.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def update_state(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read, change and write a JSON object while no other process or thread does."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(folder("locks") / f"{name}.lock"):
        write_state(name, change(read_state(name)))


def known_sha256(path: Path) -> str:
    """sha256 of a file, remembered by path, size and time of change, so that a big one is read once."""
    known = read_state("hashes.json").get(_state_of(path))
    if known is None:
        known = sha256_file(path)
        know_sha256(path, known)
    return str(known)


def know_sha256(path: Path, sha256: str | None) -> None:
    """Remember the hash of a file that was just read or written."""
    if sha256 is None:
        return
    key, place = _state_of(path), f"{path.resolve()}|"
    with contextlib.suppress(OSError, LiquidError):  # a store that cannot be written to is read again next time
        update_state("hashes.json", lambda old: {**_without(old, place), key: sha256})


def _without(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def _state_of(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
