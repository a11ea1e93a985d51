"""Importance matrices: how much each input of a weight matrix mattered over a calibration text.

Knows the GGUF and the older .dat files that llama-imatrix writes, how llama-quantize turns their sums into weights, and
when a matrix is of another model. Knows nothing of how the sums come about.
ref: llama.cpp common/imatrix-loader.cpp
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from liquidcli.errors import IntegrityError, NotFoundError, UsageError
from liquidcli.files import atomic_output
from liquidcli.gguf_file import GGUFFile, open_gguf

from .choose import layer_of, trimmed
from .container import header_bytes, string
from .options import Options, value_bytes

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, N_CHUNKS, CHUNK_TOKENS = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_MAX_VALUE_BYTES = 127  # what fits into llama.cpp's key overrides, through which the tool sets these
_MAX_NAME_BYTES = 1 << 10
_ALIGNMENT = 32
_MAKE_HINT = "liquid imatrix -m MODEL -f TEXT makes one"


@dataclass(frozen=True)
class Imatrix:
    """Weights by tensor name: [n_expert * n_per_row] float32."""

    entries: Mapping[str, np.ndarray]
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


def weights_for(path: Path | None, options: Options) -> Imatrix | None:
    """The matrix at `path` without what --include-weights and --exclude-weights leave out."""
    if path is None:
        return None
    matrix, wanted, unwanted = read_imatrix(path), options.include_weights, options.exclude_weights
    for part in (*wanted, *unwanted):
        if not any(part in name for name in matrix.entries):
            raise UsageError(
                f"{part!r} is part of none of the {len(matrix.entries)} names in {path}",
                hint=f"names are {', '.join(list(matrix.entries)[:3])} ...",
            )
    kept = {
        name: weights
        for name, weights in matrix.entries.items()
        if not any(part in name for part in unwanted) and (not wanted or any(part in name for part in wanted))
    }
    return replace(matrix, entries=kept) if kept else None


def importance(matrix: Imatrix, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The weights of one tensor, None where there are none; IntegrityError where they are of another size."""
    weights = matrix.entries.get(name)
    expected = shape[0] * (shape[2] if len(shape) > 2 else 1)
    if weights is None or weights.size == expected:
        return weights
    if name in _EMBEDDINGS:
        return None
    raise IntegrityError(
        f"the imatrix is of another model: it has {weights.size} weights for {name!r}, {expected} were expected"
    )


def check_belongs(matrix: Imatrix, path: Path | None, model: Path, names: set[str], n_layer: int) -> None:
    """Raise IntegrityError for a matrix that names no tensor of the model, or layers that it does not have."""
    known = [name for name in matrix.entries if name in names]
    beyond = [name for name in matrix.entries if layer_of(name) >= n_layer]
    if known and not beyond:
        return
    found = beyond[0] if beyond else next(iter(matrix.entries))
    raise IntegrityError(
        f"{path} is the importance matrix of another model: it has {found!r}, {model} does not",
        hint=f"liquid imatrix -m {model} -f TEXT makes one",
    )


def read_imatrix(path: Path | str) -> Imatrix:
    """Read and check an importance matrix; the same file is read once."""
    path = Path(path)
    if not path.is_file():
        found = f"{path} is a folder, a file was expected" if path.is_dir() else f"there is no file {path}"
        raise (UsageError if path.is_dir() else NotFoundError)(found, hint=_MAKE_HINT)
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read(path: Path, _stamp: int) -> Imatrix:
    if is_dat(path):
        return read_dat(path).weights()
    with open_gguf(path, require_architecture=False) as f:
        missing = [key for key in (DATASETS, N_CHUNKS, CHUNK_TOKENS) if key not in f.metadata]
        if missing:
            raise IntegrityError(f"{path} is no importance matrix: it has no {missing[0]}", hint=_MAKE_HINT)
        datasets, n_chunks = f.metadata[DATASETS], f.metadata[N_CHUNKS]
        if not isinstance(datasets, list) or f.metadata_types[N_CHUNKS] != (GGUFValueType.UINT32,):
            raise IntegrityError(f"{path} is no importance matrix: {DATASETS} or {N_CHUNKS} is of another type")
        names = names_in(f)
        if not names:
            raise IntegrityError(f"{path} is an importance matrix without entries")
        entries = {name: _weights(f, name) for name in names}
        return Imatrix(entries, tuple(map(str, datasets)), n_chunks)


def is_dat(path: Path) -> bool:
    """Whether the file is no GGUF and could be of the older form."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) != b"GGUF"


def names_in(f: GGUFFile) -> list[str]:
    return sorted({name.removesuffix(end) for name in f.tensors for end in (SUMS, COUNTS) if name.endswith(end)})


def _weights(f: GGUFFile, name: str) -> np.ndarray:
    """Mean squares per input; 1 for an expert that was never asked."""
    for part in (name + SUMS, name + COUNTS):
        if part not in f.tensors or f.tensors[part].type is not GGMLQuantizationType.F32:
            raise IntegrityError(f"{f.path}: the importance of {name!r} is incomplete, {part!r} is missing or not F32")
    sums, counts = f.array(name + SUMS), f.array(name + COUNTS).ravel()
    if sums.size % counts.size:
        raise IntegrityError(f"{f.path}: {sums.size} sums of {name!r} do not divide by {counts.size} counts")
    _check_means(f.path, name, sums, counts)
    sums = sums.reshape(counts.size, -1)  # [n_expert, n_per_row]
    whole = np.floor(counts.astype(np.float64) + 0.5).astype(np.float32)[:, None]  # [n_expert, 1]
    return np.where(whole > 0, sums / np.where(whole > 0, whole, 1), 1).astype(np.float32).ravel()


def _check_means(path: Path, name: str, *numbers: np.ndarray) -> None:
    """They are of squares: ggml ends the process over some that cannot be."""
    if not all(np.isfinite(one).all() for one in numbers):
        raise IntegrityError(f"{path}: the importance of {name!r} is not finite")
    if any((one < 0).any() for one in numbers):
        raise IntegrityError(f"{path}: the importance of {name!r} is below 0")


class _Cursor:
    """Over a .dat file: little-endian i32 counts, names and float32 rows, with nothing that marks it."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    @property
    def is_over(self) -> bool:
        return self.at >= len(self.data)

    def take(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= len(self.data) - self.at:
            raise IntegrityError(f"{self.path} is neither a GGUF file nor a whole importance matrix", hint=_MAKE_HINT)
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self) -> int:
        return struct.unpack("<i", self.take(4))[0]

    def name(self) -> str:
        n_bytes = self.number()
        if n_bytes > _MAX_NAME_BYTES:
            raise IntegrityError(f"{self.path} is neither a GGUF file nor a whole importance matrix", hint=_MAKE_HINT)
        return self.take(n_bytes).decode("utf-8", "replace")


@dataclass(frozen=True)
class Dat:
    """What a file of the older form holds: means over all calls, times their number."""

    entries: tuple[tuple[str, int, np.ndarray], ...]  # name, calls, [n_matrices * n_per_row] float32
    datasets: tuple[str, ...]
    n_chunks: int

    def weights(self) -> Imatrix:
        found = {name: sums / np.float32(n) if n > 0 else sums for name, n, sums in self.entries}
        return Imatrix(found, self.datasets, self.n_chunks)


def read_dat(path: Path) -> Dat:
    dat, entries = _Cursor(path), []
    n_entries = dat.number()
    if n_entries < 1:
        raise IntegrityError(f"{path} is an importance matrix without entries")
    for _ in range(n_entries):
        name, n_calls, n_values = dat.name(), dat.number(), dat.number()
        if n_values < 1:
            raise IntegrityError(f"{path}: the importance of {name!r} is empty")
        sums = np.frombuffer(dat.take(4 * n_values), "<f4")
        _check_means(path, name, sums)
        entries.append((name, n_calls, sums))
    if dat.is_over:
        return Dat(tuple(entries), (), 0)
    n_chunks = dat.number()
    dataset = dat.name() if not dat.is_over else ""
    return Dat(tuple(entries), (dataset,) if dataset else (), n_chunks)


def write_imatrix(
    path: Path,
    entries: Mapping[str, tuple[np.ndarray, np.ndarray]],  # sums [n_expert, n_per_row], counts [n_expert]
    *,
    datasets: Sequence[str],
    n_chunks: int,
    chunk_tokens: int,
) -> None:
    """The GGUF that llama-imatrix would write."""
    arrays = {
        f"{name}{end}": np.ascontiguousarray(part, "<f4").reshape(len(entries[name][1]), -1)
        for name in sorted(entries)
        for end, part in zip((SUMS, COUNTS), entries[name], strict=True)
    }
    texts = b"".join(string(text) for text in datasets)
    keys = {
        "general.type": value_bytes("imatrix"),
        DATASETS: struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, len(datasets)) + texts,
        N_CHUNKS: value_bytes(n_chunks),
        CHUNK_TOKENS: value_bytes(chunk_tokens),
    }
    placed = [_Placed(name, trimmed(array.shape[::-1]), array.nbytes) for name, array in arrays.items()]
    head = header_bytes(keys, placed, _ALIGNMENT)
    size_bytes = len(head) + sum(array.nbytes + _ALIGNMENT for array in arrays.values())
    with atomic_output(path, size_bytes) as part, part.open("wb") as file:
        file.write(head)
        for array in arrays.values():
            file.write(array.tobytes() + bytes(-array.nbytes % _ALIGNMENT))


@dataclass(frozen=True)
class _Placed:
    name: str
    shape: tuple[int, ...]
    size_bytes: int
    type: int = GGMLQuantizationType.F32


def _clip(text: str) -> str:
    return text.encode()[:_MAX_VALUE_BYTES].decode("utf-8", "ignore")
