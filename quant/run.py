"""Carry out a plan: read rows, turn them into blocks in several threads, write them in order, hash while writing.

Knows files and threads. Every row is quantized by ggml itself and rows do not depend on each other, so the bytes do not
depend on the number of threads, nor on where a stopped job went on. Outputs are whole or absent.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError, Interrupted, UsageError
from liquidcli.files import check_apart, signals_wait
from liquidcli.gguf_file import GGUFFile, open_gguf
from liquidcli.llama import ggml

from .imatrix import Imatrix, importance, weights_for
from .parts import Part
from .plan import Plan, ShardPlan, TensorPlan
from .types import FROM_CODEBOOK

_CHUNK_ELEMENTS = 1 << 20  # 4 MiB as float32
MOST_WEIGHTED = 1e15  # a row's sum of squares; ggml multiplies two of them, in float32
_FORMAT = 1  # of the journal: a job of another format starts anew
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Result:
    plan: Plan
    outputs: tuple[Path, ...]  # one, or the files of a split model
    size_bytes: int
    sha256s: tuple[str, ...]
    resumed_bytes: int  # taken over from a run that was stopped
    seconds: float

    @property
    def output(self) -> Path:
        return self.outputs[0]

    @property
    def sha256(self) -> str:
        return self.sha256s[0]

    def as_json(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"output": str(self.output), "sha256": self.sha256, "seconds": round(self.seconds, 3)}
        extra["resumed_bytes"] = self.resumed_bytes
        if len(self.outputs) > 1:
            files = zip(self.outputs, self.plan.shards, self.sha256s, strict=True)
            extra["files"] = [
                {"path": str(path), "size_bytes": shard.size_bytes, "sha256": digest} for path, shard, digest in files
            ]
        return {**self.plan.as_json(), "size_bytes": self.size_bytes, **extra}


@dataclass(frozen=True)
class _Piece:
    """Some rows of one tensor: what a thread does at once."""

    tensor: TensorPlan
    raw: np.ndarray  # [n_bytes] uint8, a view of the input
    importance: np.ndarray | None  # [n_per_row] float32
    padding: int  # bytes after it, where it ends its tensor


def run(plan: Plan, out: Path | str, *, n_threads: int | None = None, progress: Progress | None = None) -> Result:
    """Write `plan` to `out`. A failure leaves nothing behind; a long job that was stopped goes on when run again."""
    start = time.monotonic()
    if n_threads is not None and n_threads < 1:
        raise UsageError(f"{n_threads} threads cannot work, at least 1 is needed")
    check_importance(plan)
    with open_gguf(plan.input) as f, contextlib.ExitStack() as undo:
        _check_same_input(plan, f)
        outputs = output_paths(plan, Path(out))
        for path in outputs:
            check_apart(path, *f.paths, plan.imatrix, hint="name another output file")
        writer = _Writer(plan, f, n_threads or _n_cores(), progress)
        parts = []
        for shard, path in zip(plan.shards, outputs, strict=True):
            with signals_wait():
                parts.append(Part(path, writer.job(shard)))
                undo.push(_leave(parts[-1]))
            parts[-1].resume(shard.size_bytes)
        resumed_bytes = sum(part.offset for part in parts)
        for shard, part in zip(plan.shards, parts, strict=True):
            writer.write(shard, part)
        for part in parts:
            part.publish()
        undo.pop_all()
    sizes, hashes = sum(part.offset for part in parts), tuple(part.digest.hexdigest() for part in parts)
    return Result(plan, tuple(outputs), sizes, hashes, resumed_bytes, time.monotonic() - start)


def output_paths(plan: Plan, out: Path) -> list[Path]:
    """`out`, or the files of a split model named after it as llama.cpp names them."""
    if not plan.options.keep_split:
        return [out]
    stem, n = out.name.removesuffix(".gguf"), len(plan.shards)
    return [out.with_name(f"{stem}-{no + 1:05d}-of-{n:05d}.gguf") for no in range(n)]


def check_importance(plan: Plan) -> None:
    if not plan.without_importance:
        return
    name = plan.without_importance[0]
    kind = next(tensor.type.name for tensor in plan.tensors if tensor.name == name)
    if plan.imatrix is None:
        found = f"{plan.type.name} makes {kind} of {name!r}, which is garbage without an importance matrix"
    else:
        found = f"{plan.imatrix} says nothing of {name!r}, and as {kind} it would be garbage without that"
    raise UsageError(found, hint=f"liquid imatrix -m {plan.input} -f TEXT, then --imatrix FILE")


def _leave(part: Part) -> Callable[..., bool]:
    """What to do with a part when its job ends early."""

    def leave(kind: type | None, error: BaseException | None, _trace: object) -> bool:
        if kind is not None and issubclass(kind, (KeyboardInterrupt, Interrupted)) and part.is_saved:
            part.keep()
            raise Interrupted("stopped; the same command goes on from there", hint=f"or delete {part.path}") from error
        part.abandon()
        return False

    return leave


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_same_input(plan: Plan, f: GGUFFile) -> None:
    found = {info.name: (info.type, info.size_bytes) for info in f.tensors.values()}
    if found != {t.name: (t.source_type, t.source_bytes) for t in plan.tensors}:
        raise IntegrityError(f"{plan.input} has changed since the plan was made")


class _Writer:
    """One run's work on its files, one after the other."""

    def __init__(self, plan: Plan, f: GGUFFile, n_threads: int, progress: Progress | None) -> None:
        self.plan, self.f, self.n_threads, self.progress = plan, f, n_threads, progress
        self.imatrix = weights_for(plan.imatrix, plan.options)
        self.read_bytes = 0

    def job(self, shard: ShardPlan) -> str:
        """The same for two runs exactly when they write the same bytes."""
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self.f.paths]
        weights: list[Any] | None = None
        if self.plan.imatrix:
            chosen = [self.plan.options.include_weights, self.plan.options.exclude_weights]
            weights = [hashlib.sha256(self.plan.imatrix.read_bytes()).hexdigest(), *chosen]
        head = hashlib.sha256(shard.head).hexdigest()
        return json.dumps([_FORMAT, _CHUNK_ELEMENTS, files, head, weights, ggml.stamp()])

    def write(self, shard: ShardPlan, part: Part) -> None:
        if part.offset == 0:
            part.write(shard.head)
        pieces = _pieces(shard, self.f, self.imatrix)
        for piece in itertools.islice(pieces, part.done):
            self.read_bytes += piece.raw.size
        for done, (piece, made) in enumerate(_in_order(pieces, self.n_threads), part.done + 1):
            part.write(made.data)
            part.write(bytes(piece.padding))
            part.reached(done)
            self.f.forget(piece.raw)
            self.read_bytes += piece.raw.size
            if self.progress:
                self.progress(self.read_bytes, self.plan.source_bytes, piece.tensor.name)
        if part.offset != shard.size_bytes:
            raise IntegrityError(f"{part.target} became {part.offset} bytes, {shard.size_bytes} were planned")
        part.seal()


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


def _pieces(shard: ShardPlan, f: GGUFFile, imatrix: Imatrix | None) -> Iterator[_Piece]:
    """Cut every tensor into rows; a piece never holds rows of two experts, for each has its own importance."""
    for tensor in shard.tensors:
        raw = f.raw(tensor.name)
        n_per_row, n_rows = tensor.shape[0], tensor.shape[1] if len(tensor.shape) > 1 else 1
        weights = None
        if imatrix is not None and tensor.type is not tensor.source_type:
            weights = importance(imatrix, tensor.name, tensor.shape)
        matrices = raw.reshape(-1, n_rows, raw.size * n_per_row // tensor.n_elements)  # [n_expert, n_rows, row bytes]
        step = max(1, _CHUNK_ELEMENTS // n_per_row)
        for expert, matrix in enumerate(matrices):
            own = weights[expert * n_per_row : (expert + 1) * n_per_row] if weights is not None else None
            for row in range(0, n_rows, step):
                is_last = expert == len(matrices) - 1 and row + step >= n_rows
                padding = -tensor.size_bytes % shard.alignment if is_last else 0
                yield _Piece(tensor, matrix[row : row + step].reshape(-1), own, padding)


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
    rows = numbers.reshape(-1, tensor.shape[0])
    if kind in FROM_CODEBOOK and not _most_weighted(rows, importance) < MOST_WEIGHTED:
        raise IntegrityError(f"{tensor.name!r} holds numbers, or has importances, too large for {kind.name}")
    made = ggml.quantize(kind, rows, importance)
    if not ggml.is_valid(kind, made):
        raise IntegrityError(f"{tensor.name!r} holds numbers too large for {kind.name}")
    return made


def _most_weighted(rows: np.ndarray, importance: np.ndarray | None) -> float:
    """The largest sum of squares of a row, plain or weighted."""
    with np.errstate(over="ignore"):
        most = float(np.einsum("ij,ij->i", rows, rows).max())
        return most if importance is None else max(most, float((rows * rows @ importance).max()))
