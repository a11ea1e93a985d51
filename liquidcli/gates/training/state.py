"""The folder of a run's state: one run at a time, of one base, with the options that its finished stages had.

Knows the names of files and options. Knows nothing of what the stages compute.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError  # what torch.load says instead of unpickling
from typing import Any

import torch
from filelock import FileLock, Timeout

from ...errors import IntegrityError, UsageError
from ...files import atomic_output, sha256_file
from ...gguf_file import open_gguf
from ..identity import base_identity, check_is_model
from .options import Options, layers_text

OPTIONS, LOCK, CONVERTED = "options.json", "lock", "base-f32.gguf"
_FREE = ("threads", "device", "valid", "valid_rows", "balance")  # how, and the last stage, which always runs anew
_UNTIL = {  # what may still change as long as a stage has left no file
    "local.pt": ("n_gates", "adapter_size", "epochs", "local_lr"),
    "tune.pt": ("tune_tokens", "batch_tokens", "lr", "gate_lr", "rank", "precision", "vocab_sample"),
}
_CONTENTS = {"texts": "--data", "init_content": "--init"}
SETTLED = "gates.pt"
_FILES = (*_UNTIL, SETTLED)  # of stages, in order: each is made from the one before it
_TAIL_BYTES = 1 << 20


@contextmanager
def opened(state: Path, options: Options, base: Path, texts: Sequence[Path], resume: bool) -> Iterator[bool]:
    """The folder for this run and no other, and whether stages have left something in it.

    UsageError if it holds a run that is not to be resumed, or is another's.
    """
    told = json.loads(json.dumps(asdict(options)))
    told |= {"base": _fingerprint(base), "texts": [sha256_file(path) for path in texts]}
    told["init_content"] = sha256_file(options.init) if options.init else ""
    made = not state.exists()
    if not resume and _told_before(state) and _left(state):
        raise UsageError(f"{state} holds an earlier run", hint="--resume goes on with it; or name another -o")
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / LOCK, timeout=0):
            _compare(state, told)
            (state / "chunks").mkdir(exist_ok=True)
            with atomic_output(state / OPTIONS) as part:
                part.write_text(json.dumps(told, indent=1))
            yield bool(_left(state))
    except Timeout as error:
        raise UsageError(f"a run is going on in {state}", hint="wait for it, or name another --state") from error
    finally:
        if made and not _left(state) and not (state / CONVERTED).exists():
            _remove(state)


def save(kept: dict, path: Path) -> None:
    with atomic_output(path) as part:
        torch.save(kept, part)


def load(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What `save` wrote; IntegrityError for a file that was lost, cut or changed. `mmap`: read when it is looked at."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except PermissionError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        after = _FILES[_FILES.index(path.name) :] if path.name in _FILES else (path.name,)
        gone = " ".join(str(path.with_name(name)) for name in after if path.with_name(name).exists())
        hint = f"rm {gone}, then --resume computes it anew" if gone else "--resume computes it anew"
        raise IntegrityError(f"{path} {fault}", hint=hint) from error


def _left(state: Path) -> list[Path]:
    """What stages, or somebody else, left there; not what a writer was killed at."""
    if not state.exists():
        return []
    found = [*(state / "chunks").glob("*"), *state.iterdir()]
    ours = (OPTIONS, LOCK, CONVERTED, "chunks")
    return [path for path in found if path.name not in ours and not re.fullmatch(r"\..+\.part", path.name)]


def _remove(state: Path) -> None:
    for name in (OPTIONS, LOCK):
        (state / name).unlink(missing_ok=True)
    for folder in (state / "chunks", state):
        if folder.exists():
            folder.rmdir()


def _compare(state: Path, told: dict[str, Any]) -> None:
    """Refuse what the stages in the folder were not made with. A folder without any is whoever comes next's."""
    before = _told_before(state)
    if before.get("base") != told["base"]:
        if _left(state):
            raise UsageError(f"the run in {state} was begun with another base", hint="name another -o or --state")
        (state / CONVERTED).unlink(missing_ok=True)
    if not _left(state):
        return
    done = [name for i, name in enumerate(_FILES) if any((state / later).exists() for later in _FILES[i:])]
    free = {*_FREE, "base", *(option for name in _UNTIL if name not in done for option in _UNTIL[name])}
    if changed := [name for name in told if told[name] != before.get(name, told[name]) and name not in free]:
        kept_words = ", ".join(_word(name, before.get(name)) for name in changed)
        raise UsageError(
            f"the run in {state} was begun with {kept_words}",
            hint="repeat the command with the same options and --resume, or name another -o",
        )


def _told_before(state: Path) -> dict[str, Any]:
    """What stages in the folder were made with; IntegrityError if there are some and nothing vouches for them."""
    kept = state / OPTIONS
    try:
        before = json.loads(kept.read_text()) if kept.exists() else None
    except ValueError:
        before = None
    if isinstance(before, dict) and "base" in before:
        return before
    if not _left(state):
        return {}
    fault = "is damaged" if kept.exists() else "is missing"
    raise IntegrityError(
        f"{kept} {fault}, and nothing else says what the files beside it were made with",
        hint="name another -o or --state, where the run starts from the beginning",
    )


def _word(name: str, value: Any) -> str:
    """An option as it was, in the words of the command line."""
    if name in _CONTENTS:
        return f"other contents of {_CONTENTS[name]}"
    flag = f"--{name.replace('_', '-')}"
    words = [str(one) for one in value] if isinstance(value, list) else [] if value in ("", None) else [str(value)]
    if name == "target":
        words = [f"{100 * value:g}%"]
    if name == "layers" and value:
        words = [layers_text(value)]
    return " ".join(f"{flag} {word}" for word in words) or f"no {flag}"


def _fingerprint(base: Path) -> str:
    """sha256 of what tells bases, and quantizations of one, apart: a GGUF's identity, a folder's configuration; sizes
    and ends of the files."""
    digest = hashlib.sha256()
    if base.is_dir():
        paths = sorted([*base.glob("config.json"), *base.glob("*.safetensors")])
    else:
        with open_gguf(base) as f:
            check_is_model(f)
            identity = base_identity(f)
            digest.update(json.dumps(identity.as_json()).encode() + identity.order.ranks)
            paths = list(f.paths)
    for path in paths:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(0, size - _TAIL_BYTES))
            digest.update(f"{path.name} {size} ".encode() + file.read())
    return digest.hexdigest()
