"""The head of the GGUF that quantize writes: keys copied byte for byte, then where each tensor lies.

Knows the container's layout and which keys llama-quantize sets, in its order. Knows nothing of types or rules.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Protocol

from gguf import GGUFValueType

from liquidcli.gguf_file import GGUFFile

from .options import value_bytes

_VERSION = 3
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


class Placed(Protocol):
    """A tensor as the head describes it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


def string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def output_keys(f: GGUFFile, file_type: int | None, more: Iterable[tuple[str, Any]]) -> dict[str, bytes]:
    """All keys of the output: the input's without those of a split, those of quantize, then `more`."""
    keys = {key: f.raw_value(key) for key in f.metadata if key not in _SPLIT_KEYS}
    added: list[tuple[str, Any]] = [("general.quantization_version", _QUANTIZATION_VERSION)]
    if file_type is not None:
        added.append(("general.file_type", file_type))
    for key, value in (*added, *more):
        keys.pop(key, None)
        keys[key] = value_bytes(value)
    return keys


def shard_keys(no: int, count: int, n_tensors: int) -> dict[str, bytes]:
    """What each file of a split model says of itself."""
    values = (
        struct.pack("<IH", GGUFValueType.UINT16, no),
        struct.pack("<IH", GGUFValueType.UINT16, count),
        struct.pack("<Ii", GGUFValueType.INT32, n_tensors),
    )
    return dict(zip(_SPLIT_KEYS, values, strict=True))


def header_bytes(keys: dict[str, bytes], tensors: Iterable[Placed], alignment: int) -> bytes:
    """Everything before the first tensor's data, padded."""
    placed, offset = [], 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        placed.append(string(tensor.name) + shape + struct.pack("<IQ", int(tensor.type), offset))
        offset += -(-tensor.size_bytes // alignment) * alignment
    head = b"GGUF" + struct.pack("<IQQ", _VERSION, len(placed), len(keys))
    head += b"".join(string(key) + value for key, value in keys.items()) + b"".join(placed)
    return head + bytes(-len(head) % alignment)
