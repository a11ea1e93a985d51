"""Carry out a plan: read rows, turn them into blocks in several threads, write them in order, hash while writing.

Knows files and threads. Every row is quantized by ggml itself and rows do not depend on each other, so the bytes do not
depend on the number of threads. The output is whole or absent.
"""

from __future__ import annotations

import collections
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.files import atomic_output
from liquidcli.gguf_file import GGUFFile, open_gguf
from liquidcli.llama import ggml

from .container import header_bytes
from .imatrix import Imatrix, read_imatrix
from .plan import Plan, TensorPlan

_CHUNK_ELEMENTS = 1 << 20  # 4 MiB as float32
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Result:
    plan: Plan
    output: Path
    size_bytes: int
    sha256: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        extra = {"output": str(self.output), "sha256": self.sha256, "seconds": round(self.seconds, 3)}
        return {**self.plan.as_json(), "size_bytes": self.size_bytes, **extra}


@dataclass(frozen=True)
class _Piece:
    """Some rows of one tensor: what a thread does at once."""

    tensor: TensorPlan
    raw: np.ndarray  # [n_bytes] uint8, a view of the input
    importance: np.ndarray | None  # [n_per_row] float32
    is_last: bool


def run(
    plan: Plan, out: Path | str, *, n_threads: int | None = None, progress: Progress | None = None
) -> Result:
    """Write `plan` to `out`; on failure or Ctrl-C nothing is left behind."""
    out, start = Path(out), time.monotonic()
    if n_threads is not None and n_threads < 1:
        raise UsageError(f"{n_threads} threads cannot work, at least 1 is needed")
    with open_gguf(plan.input) as f:
        _check_same_input(plan, f)
        _check_apart(f, out)
        with atomic_output(out, plan.size_bytes) as part, part.open("wb") as file:
            size_bytes, digest = _write(plan, f, file, n_threads or _n_cores(), progress)
    return Result(plan, out, size_bytes, digest, time.monotonic() - start)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_same_input(plan: Plan, f: GGUFFile) -> None:
    found = {info.name: (info.type, info.size_bytes) for info in f.tensors.values()}
    if found != {t.name: (t.source_type, t.source_bytes) for t in plan.tensors}:
        raise IntegrityError(f"{plan.input} has changed since the plan was made")


def _check_apart(f: GGUFFile, out: Path) -> None:
    if out.exists() and any(out.samefile(path) for path in f.paths):
        raise UsageError(f"{out} is the input itself", hint="name another output file")


def _write(
    plan: Plan, f: GGUFFile, file: BinaryIO, n_threads: int, progress: Progress | None
) -> tuple[int, str]:
    digest, done, size_bytes, tensor_bytes = hashlib.sha256(), 0, 0, 0

    def write(data: bytes | memoryview) -> None:
        nonlocal size_bytes
        file.write(data)
        digest.update(data)
        size_bytes += len(data)

    write(header_bytes(plan.keys, plan.tensors, plan.alignment))
    imatrix = read_imatrix(plan.imatrix) if plan.imatrix else None
    for piece, made in _in_order(_pieces(plan, f, imatrix), n_threads):
        write(made.data)
        tensor_bytes += made.size
        done += piece.raw.size
        if piece.is_last:
            _check_size(piece.tensor, tensor_bytes)
            write(bytes(-tensor_bytes % plan.alignment))
            tensor_bytes = 0
        if progress:
            progress(done, plan.source_bytes, piece.tensor.name)
    return size_bytes, digest.hexdigest()


def _check_size(tensor: TensorPlan, made_bytes: int) -> None:
    if made_bytes != tensor.size_bytes:
        raise IntegrityError(f"{tensor.name!r} became {made_bytes} bytes, {tensor.size_bytes} were planned")


def _in_order(pieces: Iterator[_Piece], n_threads: int) -> Iterator[tuple[_Piece, np.ndarray]]:
    """Pieces with their bytes, in order; a few are worked on ahead."""
    waiting: collections.deque[tuple[_Piece, Future[np.ndarray]]] = collections.deque()
    pool = ThreadPoolExecutor(n_threads, "quantize")
    try:
        for piece in pieces:
            waiting.append((piece, pool.submit(_make, piece)))
            if len(waiting) > 2 * n_threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pieces(plan: Plan, f: GGUFFile, imatrix: Imatrix | None) -> Iterator[_Piece]:
    """Cut every tensor into rows; a piece never holds rows of two experts, for each has its own importance."""
    for tensor in plan.tensors:
        raw = f.raw(tensor.name)
        n_per_row, n_rows = tensor.shape[0], tensor.shape[1] if len(tensor.shape) > 1 else 1
        weights = _importance(tensor, imatrix) if tensor.type is not tensor.source_type else None
        matrices = raw.reshape(-1, n_rows, raw.size * n_per_row // _n_elements(tensor))  # [n_expert, n_rows, row bytes]
        step = max(1, _CHUNK_ELEMENTS // n_per_row)
        for expert, matrix in enumerate(matrices):
            own = weights[expert * n_per_row : (expert + 1) * n_per_row] if weights is not None else None
            for row in range(0, n_rows, step):
                is_last = expert == len(matrices) - 1 and row + step >= n_rows
                yield _Piece(tensor, matrix[row : row + step].reshape(-1), own, is_last)


def _n_elements(tensor: TensorPlan) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _importance(tensor: TensorPlan, imatrix: Imatrix | None) -> np.ndarray | None:
    weights = imatrix.entries.get(tensor.name) if imatrix else None
    if weights is None:
        return None
    expected = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
    if weights.size == expected:
        return weights
    if tensor.name in _EMBEDDINGS:
        return None
    raise IntegrityError(f"the imatrix has {weights.size} weights for {tensor.name!r}, {expected} were expected")


def _make(piece: _Piece) -> np.ndarray:  # [n_bytes] uint8
    tensor = piece.tensor
    if not ggml.can_dequantize(tensor.source_type):
        if tensor.type is tensor.source_type:
            return piece.raw
        raise UsageError(f"{tensor.name!r} has type {tensor.source_type.name}, which cannot be turned into numbers")
    numbers = ggml.dequantize(tensor.source_type, piece.raw)
    if not np.isfinite(numbers).all():
        raise IntegrityError(f"{tensor.name!r} holds a number that is not finite: the input is broken")
    if tensor.type is tensor.source_type:
        return piece.raw
    return _quantize(tensor, tensor.type, numbers, piece.importance)


def _quantize(tensor: TensorPlan, kind: T, numbers: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    made = ggml.quantize(kind, numbers.reshape(-1, tensor.shape[0]), importance)
    if not ggml.is_valid(kind, made):
        raise IntegrityError(f"{tensor.name!r} holds numbers too large for {kind.name}")
    return made
