"""Carries out an export: tensor after tensor from GGUF to safetensors, in pieces; the folder is whole or absent.

Knows streaming, dequantizing and progress. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as GGMLType

from liquidcli.errors import IntegrityError
from liquidcli.folders import atomic_folder
from liquidcli.gguf_file import GGUFFile

from ..encode import encode, to_float32
from ..tensors import Target
from .plan import ExportPlan
from .shards import write_shard
from .tensors import Export

Progress = Callable[[int, int, str], None]
PIECE_ITEMS = 4 << 20
_DEQUANTIZE_ITEMS = 1 << 20  # a multiple of every block
_CARRIERS = {GGMLType.F32: ("F32", "<f4"), GGMLType.F16: ("F16", "<f2"), GGMLType.BF16: ("BF16", "<u2")}


@dataclass(frozen=True)
class ExportResult:
    input: Path
    output: Path
    size_bytes: int
    files: tuple[dict[str, Any], ...]  # name, size_bytes and, of weights, sha256
    tensors: tuple[Export, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "input": str(self.input),
            "output": str(self.output),
            "size_bytes": self.size_bytes,
            "files": list(self.files),
            "tensors": [one.as_json() for one in self.tensors],
            "seconds": round(self.seconds, 3),
        }


def run_export(plan: ExportPlan, out: Path | str, progress: Progress | None = None) -> ExportResult:
    out, start = Path(out), time.perf_counter()
    total, done = plan.size_bytes, 0

    def told(size_bytes: int, name: str) -> None:
        nonlocal done
        done += size_bytes
        if progress:
            progress(done, total, name)

    with atomic_folder(out, total) as part:
        listed: list[dict[str, Any]] = []
        for name, data in plan.files.items():
            (part / name).parent.mkdir(exist_ok=True)
            (part / name).write_bytes(data)
            told(len(data), name)
            listed.append({"name": name, "size_bytes": len(data)})
        for shard in plan.shards:
            digest = write_shard(part, shard, lambda one: _pieces(plan.file, one), told)
            listed.append({"name": shard.name, "size_bytes": shard.size_bytes, "sha256": digest})
    return ExportResult(plan.source, out, total, tuple(listed), plan.tensors, time.perf_counter() - start)


def _pieces(f: GGUFFile, one: Export) -> Iterator[np.ndarray]:
    """The tensor's bytes in order."""
    targets, kind = one.row.targets, GGMLType[one.dtype]
    if targets[0].transform.stacks:
        values, dtype = _back(f, targets[0], one.number, 1)
        yield encode(values[0], dtype, kind, one.name)
    elif len(one.row.sources) > 1 or not all(target.transform.by_row for target in targets):
        yield from _join(f, one, 0, None, kind)
    else:
        n_rows = f.tensors[targets[0].name].shape[-1]
        n_items = sum(f.tensors[target.name].n_elements for target in targets)
        step = max(1, PIECE_ITEMS * n_rows // n_items)
        for first in range(0, n_rows, step):
            yield from _join(f, one, first, min(step, n_rows - first), kind)


def _join(f: GGUFFile, one: Export, first: int, count: int | None, kind: GGMLType) -> Iterator[np.ndarray]:
    """Some rows of the first axis of what the targets hold of this source."""
    found = [_back(f, target, first, count) for target in one.row.targets]
    if len({dtype for _, dtype in found}) > 1:
        found = [(to_float32(values, dtype), "F32") for values, dtype in found]
    values, dtype = found[0]
    if len(one.row.sources) > 1:
        values = values[one.number]
    elif len(found) > 1:
        values = np.concatenate([part for part, _ in found], axis=one.row.targets[0].transform.joined)
    yield encode(values, dtype, kind, one.name)


def _back(f: GGUFFile, target: Target, first: int, count: int | None) -> tuple[Any, str]:
    values, dtype = _read(f, target.name, first, count)
    assert target.transform.inverse is not None  # match_back sees to it
    return target.transform.inverse(values), dtype


def _read(f: GGUFFile, name: str, first: int, count: int | None) -> tuple[np.ndarray, str]:
    """Rows [first, first + count) of the slowest axis: 16- and 32-bit floats as they lie there, the rest as float32."""
    info = f.tensor(name)
    shape = info.shape[::-1]
    last = shape[0] if count is None else first + count
    row_bytes = info.size_bytes // shape[0]
    data = f.raw(name)[first * row_bytes : last * row_bytes]
    shape = (last - first, *shape[1:])
    if info.type in _CARRIERS:
        dtype, carrier = _CARRIERS[info.type]
        return data.view(carrier).reshape(shape), dtype
    return _dequantized(data, info.type, name).reshape(shape), "F32"


def _dequantized(data: np.ndarray, kind: GGMLType, name: str) -> np.ndarray:
    """Blocks know nothing of rows: long pieces at once."""
    from gguf.quants import dequantize

    block_items, block_bytes = GGML_QUANT_SIZES[kind]
    step = _DEQUANTIZE_ITEMS // block_items * block_bytes
    numbers = np.empty(len(data) // block_bytes * block_items, np.float32)
    try:
        for i, first in enumerate(range(0, len(data), step)):
            piece = dequantize(data[first : first + step].reshape(1, -1), kind).reshape(-1)
            numbers[i * _DEQUANTIZE_ITEMS : i * _DEQUANTIZE_ITEMS + piece.size] = piece
    except NotImplementedError as error:
        raise IntegrityError(f"{name} has the type {kind.name}, which has no decoder") from error
    return numbers
