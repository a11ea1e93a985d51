"""State files: what a context remembers, tied to the build, the model and the layout it came from.

    magic 8 bytes · layout version u32 · header length u32 · header JSON · llama.cpp's state, opaque

Anything else is refused. Knows the container. Does not know what lies in the state.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, NotFoundError, quote
from ..files import atomic_output
from ..gguf_file import GGUFFile

MAGIC = b"LIQSTATE"
LAYOUT_VERSION = 1
_PREFIX = struct.Struct("<8sII")
_MAX_HEADER_BYTES = 1 << 26
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Origin:
    """What must be the same on both sides."""

    build: str  # stamp of the native library
    model: str  # model_hash
    kv_policy: str
    type_k: str
    type_v: str
    n_ctx: int
    n_seq: int


@dataclass(frozen=True)
class State:
    """Tokens of sequence 0, the depth that shaped their K and V, and llama.cpp's bytes."""

    tokens: list[int]
    depth: str  # empty: every layer runs, whatever is asked for
    payload: bytes


class OtherOrigin(IntegrityError):
    """A whole state file that belongs elsewhere; `what` differs."""

    def __init__(self, path: Path, what: str, found: object, expected: object) -> None:
        hint = "states are only good for the build, model and context they were saved from; delete it"
        super().__init__(
            f"the state file {path} is of another {what}: {quote(str(found))}, not {expected!r}", hint=hint
        )
        self.what = what


def model_hash(f: GGUFFile) -> str:
    """sha256 over the header and the first 4 KiB of every tensor: tells fine-tunes apart without reading gigabytes."""
    digest = hashlib.sha256()
    for key in sorted(f.metadata):
        digest.update(key.encode())
        digest.update(f.raw_value(key))
    for name, info in sorted(f.tensors.items()):
        digest.update(f"{name} {info.shape} {info.type}".encode())
        digest.update(f.raw(name)[:_SAMPLE_BYTES].tobytes())
    return digest.hexdigest()


def write_state(path: Path, origin: Origin, state: State) -> None:
    header = {
        **asdict(origin),
        "depth": state.depth,
        "tokens": state.tokens,
        "payload_bytes": len(state.payload),
        "payload_sha256": hashlib.sha256(state.payload).hexdigest(),
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    size_bytes = _PREFIX.size + len(raw) + len(state.payload)
    with atomic_output(path, size_bytes, mode=0o600) as part, part.open("wb") as file:
        file.write(_PREFIX.pack(MAGIC, LAYOUT_VERSION, len(raw)))
        file.write(raw)
        file.write(state.payload)


def read_state(path: Path, origin: Origin, depth: str | None = None) -> State:
    """IntegrityError, in one sentence, unless the file is whole and comes from the same `origin` (and `depth`)."""
    if not path.is_file():
        raise NotFoundError(f"there is no state file {path}")
    with path.open("rb") as file:
        header = _read_header(path, file.read(_PREFIX.size), file)
        _check_origin(path, header, origin)
        if depth is not None and header.get("depth") != depth:
            raise OtherOrigin(path, "depth", header.get("depth"), depth)
        wanted = header.get("payload_bytes")
        payload = file.read()
    if len(payload) != wanted or hashlib.sha256(payload).hexdigest() != header.get("payload_sha256"):
        raise IntegrityError(f"the state file {path} is broken: its content is not what its header promises")
    tokens = header.get("tokens")
    if not isinstance(tokens, list) or len(tokens) > origin.n_ctx or not all(_is_token(token) for token in tokens):
        raise IntegrityError(f"the state file {path} is broken: its tokens make no sense")
    return State(tokens, str(header.get("depth", "auto")), payload)


def _read_header(path: Path, prefix: bytes, file: Any) -> dict[str, Any]:
    if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
        raise IntegrityError(f"{path} is no state file of liquid")
    _, version, n_bytes = _PREFIX.unpack(prefix)
    if version != LAYOUT_VERSION:
        raise IntegrityError(f"{path} is a state file of layout {version}, this program knows {LAYOUT_VERSION}")
    raw = file.read(n_bytes) if n_bytes <= _MAX_HEADER_BYTES else b""
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if len(raw) != n_bytes or not isinstance(header, dict):
        raise IntegrityError(f"the state file {path} is broken: its header cannot be read")
    return header


def _check_origin(path: Path, header: dict[str, Any], origin: Origin) -> None:
    for field in fields(Origin):
        found, expected = header.get(field.name), getattr(origin, field.name)
        if found != expected:
            raise OtherOrigin(path, _NAMES[field.name], found, expected)


_NAMES = {
    "build": "build of the native library", "model": "model", "kv_policy": "KV policy", "type_k": "K cache type",
    "type_v": "V cache type", "n_ctx": "context size", "n_seq": "number of sequences",
}  # fmt: skip


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
