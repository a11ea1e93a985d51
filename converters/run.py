"""Carries out a plan: tensor after tensor from safetensors to GGUF, in pieces, never the whole model in memory.

Knows streaming, progress and atomic output. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidcli.errors import IntegrityError, UsageError

from .checkpoint import SourceTensor
from .encode import encode, to_float32
from .plan import Plan
from .splits import atomic_outputs, split_fields, split_names
from .tensors import Dropped, Output
from .writer import Writer

Progress = Callable[[int, int, str], None]
PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class File:
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Result:
    input: Path
    files: tuple[File, ...]
    tensors: tuple[Output, ...]
    seconds: float

    @property
    def output(self) -> Path:
        """The file by which the model is named: of several the first."""
        return self.files[0].path

    @property
    def sha256(self) -> str:
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def as_json(self) -> dict[str, Any]:
        more = [{**asdict(file), "path": str(file.path)} for file in self.files]
        return {
            "input": str(self.input),
            "output": str(self.output),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            **({"files": more} if len(more) > 1 else {}),
            "tensors": [output.as_json() for output in self.tensors],
            "seconds": round(self.seconds, 3),
        }


def run(plan: Plan, out: Path | str, progress: Progress | None = None) -> Result:
    """Write the GGUF; it is there whole or not at all."""
    out, start = Path(out), time.perf_counter()
    paths = split_names(out, len(plan.files))
    own = {file.resolve() for file in plan.source.iterdir() if file.suffix != ".gguf"}
    own |= {source.path.resolve() for output in plan.outputs for source in output.sources}
    if taken := [path for path in paths if path.is_file() and path.resolve() in own]:
        raise UsageError(f"{taken[0]} is one of the files that are converted", hint="name another file with -o")
    for one in plan.dropped:
        _check_dropped(one)
    told = _Told(plan.size_bytes, progress)
    with atomic_outputs(paths, plan.size_bytes) as parts:
        digests = [_write(plan, number, part, told) for number, part in enumerate(parts)]
    files = tuple(File(path, *digest) for path, digest in zip(paths, digests, strict=True))
    return Result(plan.source, files, plan.outputs, time.perf_counter() - start)


def _write(plan: Plan, number: int, path: Path, told: _Told) -> tuple[int, str]:
    """One file of the plan's; its size and sha256."""
    outputs = plan.files[number]
    with path.open("wb") as file, Writer(file, split_fields(plan.fields, number, plan.files), outputs) as writer:
        for output in outputs:
            for piece in _pieces(plan, output):
                writer.add(piece)
                told.add(piece.nbytes, output.name)
            writer.end_tensor()
        digest = writer.sha256()
    return writer.size_bytes, digest


@dataclass
class _Told:
    """Bytes so far, over all files."""

    total: int
    progress: Progress | None
    done: int = 0

    def add(self, size_bytes: int, name: str) -> None:
        self.done += size_bytes
        if self.progress:
            self.progress(self.done, self.total, name)


def _pieces(plan: Plan, output: Output) -> Iterator[np.ndarray]:
    """The output's bytes in order."""
    if output.name in plan.generated:
        yield plan.generated[output.name]
    elif len(output.sources) > 1 and not output.transform.stacks:
        arrays = [to_float32(source.read(), source.dtype) for source in output.sources]
        yield encode(output.transform(*arrays), "F32", output.type, output.sources[0].name)
    else:
        for source in output.sources:
            for rows in _row_ranges(source) if output.transform.by_row else [(0, None)]:
                values, dtype = source.read(*rows), source.dtype
                if output.transform.computes:
                    values, dtype = to_float32(values, dtype), "F32"
                yield encode(output.transform(values), dtype, output.type, source.name)


def _row_ranges(source: SourceTensor) -> Iterator[tuple[int, int | None]]:
    n_rows = source.shape[0] if source.shape else 1
    step = max(1, PIECE_BYTES * n_rows // max(source.size_bytes, 1))
    for first in range(0, n_rows, step):
        yield first, min(step, n_rows - first)


def _check_dropped(dropped: Dropped) -> None:
    """A tensor that is left out because another one says the same must say the same."""
    one, other = dropped.source, dropped.same_as
    if other is None:
        return
    same = (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        np.array_equal(one.read(*rows), other.read(*rows)) for rows in _row_ranges(one)
    )
    if not same:
        raise IntegrityError(
            f"config.json says that {one.name} is tied to {other.name}, but the checkpoint has another one",
            hint="set tie_word_embeddings to false in config.json if the checkpoint's own is meant",
        )
