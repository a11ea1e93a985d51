"""safetensors files, one or several of a bounded size, written front to back.

Knows the format and transformers' names for shards. Does not know what the tensors are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import SINGLE
from .tensors import Export

_ALIGNMENT = 8


@dataclass(frozen=True)
class Shard:
    name: str
    tensors: tuple[Export, ...]

    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for one in self.tensors:
            span = [end, end + one.size_bytes]
            entries[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": span}
            end += one.size_bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def size_bytes(self) -> int:
        return len(self.header()) + sum(one.size_bytes for one in self.tensors)


def into_shards(tensors: Sequence[Export], max_bytes: int) -> list[Shard]:
    """In order, each as full as it gets; a tensor larger than `max_bytes` has a file of its own."""
    groups: list[list[Export]] = [[]]
    filled = 0
    for one in tensors:
        if groups[-1] and filled + one.size_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(one)
        filled += one.size_bytes
    if len(groups) == 1:
        return [Shard(SINGLE, tuple(groups[0]))]
    count = len(groups)
    return [Shard(f"model-{i:05}-of-{count:05}.safetensors", tuple(group)) for i, group in enumerate(groups, 1)]


def index_text(shards: Sequence[Shard]) -> str:
    weight_map = {one.name: shard.name for shard in shards for one in shard.tensors}
    total = sum(one.size_bytes for shard in shards for one in shard.tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def write_shard(
    folder: Path, shard: Shard, pieces: Callable[[Export], Iterable[np.ndarray]], told: Callable[[int, str], None]
) -> str:
    """The file's sha256. `pieces` gives a tensor's bytes in order, `told` hears of each."""
    digest = hashlib.sha256()
    with (folder / shard.name).open("wb") as file:
        header = shard.header()
        file.write(header)
        digest.update(header)
        told(len(header), shard.name)
        for one in shard.tensors:
            written = 0
            for piece in pieces(one):
                view = np.ascontiguousarray(piece).data.cast("B")
                file.write(view)
                digest.update(view)
                written += view.nbytes
                told(view.nbytes, one.name)
            if written != one.size_bytes:
                raise ValueError(f"{one.name}: {written} bytes were written, {one.size_bytes} were planned")
    return digest.hexdigest()
