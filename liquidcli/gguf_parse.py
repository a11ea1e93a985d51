"""The bytes of one GGUF file, parsed without trust: every count, length, offset and type is checked before it is used.

Knows the container's layout (versions 2 and 3, little-endian). Knows nothing of split models, of tensor contents or of
what a model needs. Every failure is an IntegrityError or NotFoundError of one sentence.
ref: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from .errors import IntegrityError, NotFoundError, UsageError, quote

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER_BYTES = 24  # magic, version, n_tensors, n_kv
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, the smallest value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one letter, n_dims = 1, its size, type, offset
_MAX_ARRAY_ELEMENTS = 1 << 26
_MAX_STRING_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME without its closing zero
_MAX_DIMS = 4
_MAX_TENSOR_BYTES = 1 << 62
ValueTypes = tuple[GGUFValueType, ...]  # (type,) or (ARRAY, element type)
_SCALARS = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2", GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4", GGUFValueType.UINT64: "<u8", GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4", GGUFValueType.FLOAT64: "<f8", GGUFValueType.BOOL: "<u1",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `shape` in ggml order (the row first), `offset` from the start of its file, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size_bytes: int
    shard: int = 0

    @property
    def n_elements(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n


class _Cursor:
    """Reads forward through the bytes of one file and says where it ran out of them."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n_bytes: int, what: str) -> int:
        if n_bytes > self.left():
            raise IntegrityError(
                f"{self.path} ends inside {what}: {n_bytes} bytes wanted at {self.at}, {self.left()} left",
                hint="the file is truncated or broken; fetch it again",
            )
        start = self.at
        self.at += n_bytes
        return start

    def u32(self, what: str) -> int:
        return struct.unpack_from("<I", self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack_from("<Q", self.data, self.take(8, what))[0]

    def string(self, what: str, most: int = _MAX_STRING_BYTES) -> str:
        n_bytes = self.u64(what)
        if n_bytes > most and n_bytes <= self.left():
            raise IntegrityError(f"{self.path}: {what} has {n_bytes} bytes, at most {most} are sane")
        start = self.take(n_bytes, what)
        return str(self.data[start : start + n_bytes], "utf-8", "replace")

    def strings(self, n: int, what: str) -> list[str]:
        if n * 8 > self.left():
            self.take(n * 8, what)
        found: list[str] = []
        while len(found) < n:
            some, n_bytes = _leading_strings(bytes(self.data[self.at : self.at + _CHUNK_BYTES]), n - len(found))
            self.at += n_bytes
            found += some or [self.string(what)]  # longer than a chunk, or broken
        return found

    def numbers(self, kind: GGUFValueType, n: int, what: str) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        start = self.take(n * dtype.itemsize, what)
        array = np.frombuffer(self.data, dtype, n, start)
        return (array != 0).tolist() if kind is GGUFValueType.BOOL else array.tolist()


def _leading_strings(raw: bytes, n: int) -> tuple[list[str], int]:
    """The first whole strings of `raw`, at most n, and their bytes: a vocabulary has hundreds of thousands of them."""
    found, end, length = [], 0, struct.Struct("<Q").unpack_from
    with contextlib.suppress(struct.error):
        for _ in range(n):
            start = end + 8
            stop = start + length(raw, end)[0]
            if stop > len(raw):
                break
            found.append(raw[start:stop].decode("utf-8", "replace"))
            end = stop
    return found, end


@dataclass
class Shard:
    """One file of a model: its bytes, its keys, its tensors."""

    path: Path
    data: np.ndarray
    version: int
    alignment: int
    data_offset: int
    metadata: dict[str, Any]
    metadata_types: dict[str, ValueTypes]
    metadata_spans: dict[str, tuple[int, int]]  # where type and value lie in the file, for copies byte for byte
    tensors: dict[str, TensorInfo]


def read_shard(path: Path, shard: int) -> Shard:
    data = _map(path)
    cursor = _Cursor(path, data.data)
    version, n_tensors, n_kv = _header(cursor)
    metadata, types, spans = _keys(cursor, n_kv)
    alignment = _alignment(path, metadata, types)
    infos = _tensor_infos(cursor, n_tensors)
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = _place(path, infos, data_offset, alignment, len(data), shard)
    return Shard(path, data, version, alignment, data_offset, metadata, types, spans, tensors)


def _map(path: Path) -> np.ndarray:
    if not path.exists():
        raise NotFoundError(f"there is no file {path}")
    if path.is_dir():
        hint = "liquid convert makes one from a checkpoint folder"
        raise UsageError(f"{path} is a folder, a GGUF file was expected", hint=hint)
    if not path.is_file():
        raise IntegrityError(f"{path} is no regular file, a GGUF file was expected")
    if path.stat().st_size < _HEADER_BYTES:
        raise IntegrityError(f"{path} has {path.stat().st_size} bytes, too short for a GGUF file")
    try:
        return np.memmap(path, np.uint8, "r").view(np.ndarray)
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}") from error


def _header(cursor: _Cursor) -> tuple[int, int, int]:
    path = cursor.path
    magic = bytes(cursor.data[: cursor.take(4, "the magic") + 4])
    if magic != MAGIC:
        raise IntegrityError(f"{path} is no GGUF file: it begins with {quote(magic)}, not {quote(MAGIC)}")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise IntegrityError(f"{path} is a big-endian GGUF; only little-endian files can be used")
    if version not in _VERSIONS:
        raise IntegrityError(f"{path} is GGUF version {version}; versions 2 and 3 are known")
    n_tensors, n_kv = cursor.u64("the tensor count"), cursor.u64("the key count")
    if n_kv * _MIN_KEY_BYTES + n_tensors * _MIN_TENSOR_BYTES > cursor.left():
        claim = f"{path} claims {n_kv} keys and {n_tensors} tensors"
        raise IntegrityError(f"{claim}, more than its {len(cursor.data)} bytes can hold")
    return version, n_tensors, n_kv


def _keys(cursor: _Cursor, n_kv: int) -> tuple[dict[str, Any], dict[str, ValueTypes], dict[str, tuple[int, int]]]:
    metadata: dict[str, Any] = {}
    types: dict[str, ValueTypes] = {}
    spans: dict[str, tuple[int, int]] = {}
    for i in range(n_kv):
        key = cursor.string(f"the name of key {i}", _MAX_KEY_BYTES)
        if not key or key in metadata:
            raise IntegrityError(f"{cursor.path}: key {i} is {'a second ' + quote(key) if key else 'without a name'}")
        start = cursor.at
        metadata[key], types[key] = _value(cursor, key)
        spans[key] = (start, cursor.at)
    return metadata, types, spans


def _value(cursor: _Cursor, key: str) -> tuple[Any, ValueTypes]:
    what = f"the value of {quote(key)}"
    kind = _value_type(cursor, key)
    if kind is not GGUFValueType.ARRAY:
        value = cursor.string(what) if kind is GGUFValueType.STRING else cursor.numbers(kind, 1, what)[0]
        return value, (kind,)
    element = _value_type(cursor, key)
    if element is GGUFValueType.ARRAY:
        raise IntegrityError(f"{cursor.path}: {quote(key)} is an array of arrays, which GGUF readers do not take")
    n = cursor.u64(what)
    if n > _MAX_ARRAY_ELEMENTS:
        raise IntegrityError(f"{cursor.path}: {quote(key)} claims {n} elements, at most {_MAX_ARRAY_ELEMENTS} are sane")
    values = cursor.strings(n, what) if element is GGUFValueType.STRING else cursor.numbers(element, n, what)
    return values, (kind, element)


def _value_type(cursor: _Cursor, key: str) -> GGUFValueType:
    number = cursor.u32(f"the type of {quote(key)}")
    try:
        return GGUFValueType(number)
    except ValueError:
        raise IntegrityError(f"{cursor.path}: {quote(key)} has value type {number}, which does not exist") from None


def _alignment(path: Path, metadata: dict[str, Any], types: dict[str, ValueTypes]) -> int:
    key = "general.alignment"
    alignment = metadata.get(key, 32)
    is_u32 = types.get(key, (GGUFValueType.UINT32,)) == (GGUFValueType.UINT32,)
    if not is_u32 or alignment < 1 or alignment & (alignment - 1):
        raise IntegrityError(f"{path}: {key} is {quote(alignment)}, a power of two (u32) was expected")
    return alignment


def _tensor_infos(cursor: _Cursor, n_tensors: int) -> list[TensorInfo]:
    infos, names = [], set()
    for i in range(n_tensors):
        info = _tensor_info(cursor, i)
        if info.name in names:
            raise IntegrityError(f"{cursor.path}: tensor {quote(info.name)} is there twice")
        names.add(info.name)
        infos.append(info)
    return infos


def _tensor_info(cursor: _Cursor, i: int) -> TensorInfo:
    path, what = cursor.path, f"the description of tensor {i}"
    name = cursor.string(what)
    n = len(name.encode())
    if not 1 <= n <= _MAX_NAME_BYTES:
        raise IntegrityError(f"{path}: the name of tensor {i} has {n} bytes, 1 to {_MAX_NAME_BYTES} are allowed")
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= _MAX_DIMS:
        raise IntegrityError(f"{path}: tensor {quote(name)} has {n_dims} dimensions, 1 to {_MAX_DIMS} are allowed")
    shape = tuple(cursor.u64(what) for _ in range(n_dims))
    number = cursor.u32(what)
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise IntegrityError(f"{path}: tensor {quote(name)} has type {number}, which is not known") from None
    info = TensorInfo(name, shape, kind, cursor.u64(what), 0)
    if 0 in shape or info.n_elements * block_bytes > _MAX_TENSOR_BYTES:
        raise IntegrityError(f"{path}: tensor {quote(name)} has the impossible shape {list(shape)}")
    if shape[0] % block:
        raise IntegrityError(f"{path}: tensor {quote(name)} has rows of {shape[0]}, no multiple of its block {block}")
    return TensorInfo(name, shape, kind, info.offset, info.n_elements // block * block_bytes)


def _place(
    path: Path, infos: list[TensorInfo], data_offset: int, alignment: int, file_bytes: int, shard: int
) -> dict[str, TensorInfo]:
    """Turn offsets within the data section into offsets within the file, having checked that the data is all there."""
    end, last = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            raise IntegrityError(f"{path}: {quote(info.name)} lies at {info.offset}, not aligned to {alignment}")
        if info.offset < end:
            raise IntegrityError(f"{path}: the data of tensors {quote(last)} and {quote(info.name)} overlap")
        end, last = info.offset + info.size_bytes, info.name
    if infos and data_offset + end > file_bytes:
        raise IntegrityError(
            f"{path} is truncated: tensor {quote(last)} ends at byte {data_offset + end}, the file at {file_bytes}",
            hint="fetch it again",
        )
    return {
        i.name: TensorInfo(i.name, i.shape, i.type, data_offset + i.offset, i.size_bytes, shard) for i in infos
    }  # the file's own order
