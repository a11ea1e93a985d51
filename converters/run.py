"""Carries out a plan: tensor after tensor from safetensors to GGUF, in pieces, never the whole model in memory.

Knows streaming, progress and atomic output. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.files import atomic_output

from .checkpoint import SourceTensor
from .encode import encode, to_float32
from .plan import Plan
from .tensors import Dropped, Output
from .writer import Writer

Progress = Callable[[int, int, str], None]
PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Result:
    input: Path
    output: Path
    size_bytes: int
    sha256: str
    tensors: tuple[Output, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "input": str(self.input),
            "output": str(self.output),
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "tensors": [output.as_json() for output in self.tensors],
            "seconds": round(self.seconds, 3),
        }


def run(plan: Plan, out: Path | str, progress: Progress | None = None) -> Result:
    """Write the GGUF; it is there whole or not at all."""
    out, start = Path(out), time.perf_counter()
    if any(source.path.resolve() == out.resolve() for output in plan.outputs for source in output.sources):
        raise UsageError(f"{out} is one of the files that are converted", hint="name another file with -o")
    total, done = plan.size_bytes, 0
    for one in plan.dropped:
        _check_dropped(one)
    with atomic_output(out, total) as part:
        with part.open("wb") as file:
            writer = Writer(file, plan.fields, plan.outputs)
            for output in plan.outputs:
                for piece in _pieces(plan, output):
                    writer.add(piece)
                    done += piece.nbytes
                    if progress:
                        progress(done, total, output.name)
                writer.end_tensor()
        size_bytes, digest = writer.size_bytes, writer.sha256()
    return Result(plan.source, out, size_bytes, digest, plan.outputs, time.perf_counter() - start)


def _pieces(plan: Plan, output: Output) -> Iterator[np.ndarray]:
    """The output's bytes in order."""
    if output.name in plan.generated:
        yield plan.generated[output.name]
    elif len(output.sources) > 1 and not output.transform.stacks:
        arrays = [to_float32(source.read(), source.dtype) for source in output.sources]
        yield encode(output.transform(*arrays), "F32", output.type, output.name)
    else:
        for source in output.sources:
            for rows in _row_ranges(source) if output.transform.by_row else [(0, None)]:
                values, dtype = source.read(*rows), source.dtype
                if output.transform.computes:
                    values, dtype = to_float32(values, dtype), "F32"
                yield encode(output.transform(values), dtype, output.type, output.name)


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
