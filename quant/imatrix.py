"""Importance matrices: how much each input of a weight matrix mattered over a calibration text.

Knows the GGUF files that llama-imatrix writes, and how llama-quantize turns their sums into weights. Does not read
the legacy .dat form.
ref: llama.cpp common/imatrix-loader.cpp
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from liquidcli.errors import IntegrityError
from liquidcli.gguf_file import GGUFFile, open_gguf

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _N_CHUNKS, _CHUNK_TOKENS = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_MAX_VALUE_BYTES = 127  # what fits into llama.cpp's key overrides, through which the tool sets these


@dataclass(frozen=True)
class Imatrix:
    """Weights by tensor name: [n_expert * n_per_row] float32."""

    entries: dict[str, np.ndarray]
    datasets: tuple[str, ...]
    n_chunks: int

    def keys(self, path: Path) -> dict[str, str | int]:
        """What a quantized file says of the matrix that made it."""
        keys: dict[str, str | int] = {"quantize.imatrix.file": _clip(str(path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = _clip(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = len(self.entries)
        if self.n_chunks > 0:
            keys["quantize.imatrix.chunks_count"] = self.n_chunks
        return keys


def read_imatrix(path: Path | str) -> Imatrix:
    """Read and check an importance matrix; the same file is read once."""
    path = Path(path)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _read(path, stamp)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _stamp: int) -> Imatrix:
    with open_gguf(path, require_architecture=False) as f:
        missing = [key for key in (_DATASETS, _N_CHUNKS, _CHUNK_TOKENS) if key not in f.metadata]
        if missing:
            raise IntegrityError(f"{path} is no importance matrix: it has no {missing[0]}")
        datasets, n_chunks = f.metadata[_DATASETS], f.metadata[_N_CHUNKS]
        if not isinstance(datasets, list) or f.metadata_types[_N_CHUNKS] != (GGUFValueType.UINT32,):
            raise IntegrityError(f"{path} is no importance matrix: {_DATASETS} or {_N_CHUNKS} is of another type")
        names = sorted({name.removesuffix(end) for name in f.tensors for end in (_SUMS, _COUNTS) if name.endswith(end)})
        if not names:
            raise IntegrityError(f"{path} is an importance matrix without entries")
        entries = {name: _weights(f, name) for name in names}
        return Imatrix(entries, tuple(map(str, datasets)), n_chunks)


def _weights(f: GGUFFile, name: str) -> np.ndarray:
    """Mean squares per input; 1 for an expert that was never asked."""
    for part in (name + _SUMS, name + _COUNTS):
        if part not in f.tensors or f.tensors[part].type is not GGMLQuantizationType.F32:
            raise IntegrityError(f"{f.path}: the importance of {name!r} is incomplete, {part!r} is missing or not F32")
    sums, counts = f.array(name + _SUMS), f.array(name + _COUNTS).ravel()
    if sums.size % counts.size:
        raise IntegrityError(f"{f.path}: {sums.size} sums of {name!r} do not divide by {counts.size} counts")
    if not np.isfinite(sums).all() or not np.isfinite(counts).all():
        raise IntegrityError(f"{f.path}: the importance of {name!r} is not finite")
    sums = sums.reshape(counts.size, -1)  # [n_expert, n_per_row]
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, None]  # [n_expert, 1]
    return np.where(whole > 0, sums / np.where(whole > 0, whole, 1), 1).astype(np.float32).ravel()


def _clip(text: str) -> str:
    return text.encode()[:_MAX_VALUE_BYTES].decode("utf-8", "ignore")
