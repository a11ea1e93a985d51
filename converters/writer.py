"""A GGUF written front to back: header, then tensor after tensor, hashed on the way. One piece is kept.

Knows the file format, version 3, little-endian. Does not know models, and leaves atomicity to its caller.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from .fields import Field, pack_field, pack_string
from .tensors import Output

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32


def padding(size_bytes: int) -> int:
    return -size_bytes % ALIGNMENT


def header(fields: Sequence[Field], outputs: Sequence[Output]) -> bytes:
    """Everything before the tensors' data, padded."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(outputs), len(fields))]
    parts += [pack_field(field) for field in fields]
    offset = 0
    for output in outputs:
        shape = tuple(reversed(output.shape))
        parts += [pack_string(output.name, "a tensor's name"), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", output.type, offset))
        offset += output.size_bytes + padding(output.size_bytes)
    data = b"".join(parts)
    return data + bytes(padding(len(data)))


def data_bytes(outputs: Sequence[Output]) -> int:
    return sum(output.size_bytes + padding(output.size_bytes) for output in outputs)


class Writer:
    """Appends to `file`; `add` may be called several times for one tensor, `end_tensor` once after them.

    Writing and hashing lag one piece behind, in a thread: what was added must not be changed.
    """

    def __init__(self, file: BinaryIO, fields: Sequence[Field], outputs: Sequence[Output]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._outputs = iter(outputs)
        self._in_tensor = 0
        self._thread = ThreadPoolExecutor(1)
        self._before: Future | None = None
        self.size_bytes = 0
        self._put(header(fields, outputs))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def add(self, data: np.ndarray) -> None:
        """Some of the current tensor's bytes."""
        view = np.ascontiguousarray(data).data.cast("B")
        self._in_tensor += view.nbytes
        self._put(view)

    def end_tensor(self) -> None:
        output = next(self._outputs)
        if self._in_tensor != output.size_bytes:
            raise ValueError(f"{output.name}: {self._in_tensor} bytes were written, {output.size_bytes} were planned")
        if missing := padding(self._in_tensor):
            self._put(bytes(missing))
        self._in_tensor = 0

    def sha256(self) -> str:
        """Of everything added, once it is in the file."""
        self._wait()
        return self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._wait()
        self._before = self._thread.submit(self._append, data)
        self.size_bytes += len(data)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)

    def _wait(self) -> None:
        if self._before is not None:
            self._before.result()
