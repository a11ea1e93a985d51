"""A GGUF's head and body for files this room writes: keys as raw bytes, so what is copied is copied without loss.

Knows the container's layout. Knows nothing of gates or models.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

ALIGNMENT = 32
_VERSION = 3
_STEP_BYTES = 4 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: `data` is asked for when its turn comes."""

    name: str
    shape: tuple[int, ...]  # ggml order
    type: GGMLQuantizationType
    size_bytes: int
    data: Callable[[], np.ndarray]


def string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(kind: GGUFValueType, content: object) -> bytes:
    """A typed value as it lies in the file."""
    return struct.pack("<I", kind) + _plain(kind, content)


def array(kind: GGUFValueType, contents: Sequence[object]) -> bytes:
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(contents))
    return head + b"".join(_plain(kind, content) for content in contents)


def _plain(kind: GGUFValueType, content: object) -> bytes:
    if kind is GGUFValueType.STRING:
        return string(str(content))
    formats = {
        GGUFValueType.UINT8: "<B",
        GGUFValueType.UINT32: "<I",
        GGUFValueType.FLOAT32: "<f",
        GGUFValueType.BOOL: "<?",
    }
    return struct.pack(formats[kind], content)


def head(keys: dict[str, bytes], tensors: Iterable[Tensor], alignment: int = ALIGNMENT) -> bytes:
    """Everything before the first tensor's data, padded."""
    placed, offset = [], 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        placed.append(string(tensor.name) + shape + struct.pack("<IQ", int(tensor.type), offset))
        offset += tensor.size_bytes + -tensor.size_bytes % alignment
    data = b"GGUF" + struct.pack("<IQQ", _VERSION, len(placed), len(keys))
    data += b"".join(string(key) + raw for key, raw in keys.items()) + b"".join(placed)
    return data + bytes(-len(data) % alignment)


def size_bytes(keys: dict[str, bytes], tensors: Sequence[Tensor], alignment: int = ALIGNMENT) -> int:
    return len(head(keys, tensors, alignment)) + sum(t.size_bytes + -t.size_bytes % alignment for t in tensors)


def write(
    file: BinaryIO,
    keys: dict[str, bytes],
    tensors: Sequence[Tensor],
    alignment: int = ALIGNMENT,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """The whole file, front to back, in steps of a few MiB."""
    done, total = 0, size_bytes(keys, tensors, alignment)
    file.write(head(keys, tensors, alignment))
    for tensor in tensors:
        raw = np.ascontiguousarray(tensor.data()).data.cast("B")
        if raw.nbytes != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: {raw.nbytes} bytes instead of {tensor.size_bytes}")
        for i in range(0, raw.nbytes, _STEP_BYTES):
            file.write(raw[i : i + _STEP_BYTES])
        file.write(bytes(-raw.nbytes % alignment))
        done += raw.nbytes
        if progress:
            progress(done, total, tensor.name)
    if progress:
        progress(total, total, "written")
