"""A GGUF model as one thing: its metadata, its tensors, its data, whether it lies in one file or in several shards.

Knows how to hand out tensors, raw or as float32, as views of the mapped files. Knows nothing of what a model needs
(`check_loadable` does) and needs no llama library.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from types import TracebackType

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from .errors import IntegrityError, NotFoundError, UsageError, quote
from .gguf_checks import check_loadable
from .gguf_parse import Shard, TensorInfo, read_shard

__all__ = ["GGUFFile", "TensorInfo", "check_loadable", "open_gguf"]

_MAX_SHARDS = 999
_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$")
_PLAIN = {
    GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F64: "<f8", GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.I8: "<i1", GGMLQuantizationType.I16: "<i2", GGMLQuantizationType.I32: "<i4",
    GGMLQuantizationType.I64: "<i8",
}  # fmt: skip


class GGUFFile:
    """An open GGUF: `metadata`, `tensors`, and their data as views of the mapped file(s)."""

    def __init__(self, shards: list[Shard]) -> None:
        first = shards[0]
        self.path = first.path
        self.paths = [shard.path for shard in shards]
        self.version = first.version
        self.alignment = first.alignment
        self.data_offset = first.data_offset
        self.metadata = first.metadata
        self.metadata_types = first.metadata_types
        self.metadata_spans = first.metadata_spans
        self.tensors = {name: info for shard in shards for name, info in shard.tensors.items()}
        self.size_bytes = sum(len(shard.data) for shard in shards)
        self._data: list[np.ndarray] = [shard.data for shard in shards]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def block_count(self) -> int:
        """Layers by the model's own key; 0 when the key is missing or no number."""
        value = self.metadata.get(f"{self.architecture}.block_count", 0)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def tensor(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise NotFoundError(f"{self.path} has no tensor {quote(name)}") from None

    def raw(self, name: str) -> np.ndarray:  # [size_bytes] uint8, a view of the file
        info = self.tensor(name)
        if not self._data:
            raise UsageError(f"{self.path} is already closed")
        return self._data[info.shard][info.offset : info.offset + info.size_bytes]

    def forget(self, view: np.ndarray) -> None:
        """Give the memory of a view of `raw` back; its bytes are read from the file again when somebody asks."""
        for data in self._data:
            mapping, start = getattr(data.base, "_mmap", None), view.ctypes.data - data.ctypes.data
            if mapping is not None and hasattr(mapping, "madvise") and 0 <= start < data.size:
                first = start // mmap.PAGESIZE * mmap.PAGESIZE
                mapping.madvise(mmap.MADV_DONTNEED, first, start + view.size - first)

    def array(self, name: str) -> np.ndarray:  # float32, numpy order: ggml's reversed
        return self.rows(name, slice(None)).reshape(self.tensor(name).shape[::-1])

    def rows(self, name: str, which: np.ndarray | slice) -> np.ndarray:
        """Some rows of a tensor, [n, shape[0]] float32; rows are counted through all further dimensions."""
        from gguf.quants import dequantize

        info, data = self.tensor(name), self.raw(name)
        row_bytes = info.size_bytes * info.shape[0] // info.n_elements
        rows = data.reshape(-1, row_bytes)[which]
        if info.type in _PLAIN:
            return rows.view(_PLAIN[info.type]).astype(np.float32, copy=False)
        try:
            return dequantize(rows, info.type).astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise IntegrityError(f"{self.path}: {name} has type {info.type.name}, which has no decoder") from error

    def raw_value(self, key: str) -> bytes:
        """Type and value of a key as they lie in the file: what a writer copies to lose nothing."""
        if not self._data:
            raise UsageError(f"{self.path} is already closed")
        start, end = self.metadata_spans[key]
        return self._data[0][start:end].tobytes()

    def close(self) -> None:
        """Let go of the mapping; views handed out before stay valid until they are dropped."""
        self._data = []

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_gguf(path: Path | str, *, require_architecture: bool = True) -> GGUFFile:
    """Open a GGUF and, for a split file, all its shards; NotFoundError or IntegrityError in one sentence."""
    path = Path(path)
    first = read_shard(path, 0)
    shards = [first, *_other_shards(first)]
    if require_architecture and not isinstance(first.metadata.get("general.architecture"), str):
        raise IntegrityError(f"{path} has no general.architecture, so nobody can tell what model it is")
    return GGUFFile(shards)


def _other_shards(first: Shard) -> list[Shard]:
    count = _split_number(first, "split.count", 1)
    if count <= 1:
        return []
    match = _SHARD_NAME.match(first.path.name)
    if not match or int(match["count"]) != count:
        end = f"-00001-of-{count:05d}.gguf"
        raise IntegrityError(f"{first.path} is one of {count} shards, so its name must end in {end}")
    names = [f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    if _split_number(first, "split.no", 0) != 0 or int(match["no"]) != 1:
        raise IntegrityError(f"{first.path} is a later shard of a split model", hint=f"name the first one: {names[0]}")
    return _join(first, [first.path.with_name(name) for name in names[1:]])


def _join(first: Shard, others: list[Path]) -> list[Shard]:
    seen = set(first.tensors)
    shards = []
    for no, path in enumerate(others, 1):
        if not path.is_file():
            raise NotFoundError(f"shard {no + 1} of {len(others) + 1} is missing: there is no file {path}")
        shard = read_shard(path, no)
        if _split_number(shard, "split.no", -1) != no or seen & set(shard.tensors):
            raise IntegrityError(f"{path} is not shard {no + 1} of the model that begins with {first.path.name}")
        seen |= set(shard.tensors)
        shards.append(shard)
    expected = first.metadata.get("split.tensors.count", len(seen))
    if expected != len(seen):
        raise IntegrityError(f"the shards of {first.path.name} hold {len(seen)} tensors, {expected} were promised")
    return shards


def _split_number(shard: Shard, key: str, default: int) -> int:
    number = shard.metadata.get(key, default)
    if shard.metadata_types.get(key, (GGUFValueType.UINT16,)) != (GGUFValueType.UINT16,) or number > _MAX_SHARDS:
        raise IntegrityError(f"{shard.path}: {key} is {quote(number)}, a small number (u16) was expected")
    return number
