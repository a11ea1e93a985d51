"""Sums behind importance matrices: read from files of either form, added up, written in either form.

Knows how llama-imatrix adds its files and what its older form keeps of them: means times the number of chunks, with no
count per expert. Knows nothing of how sums come about.
ref: llama.cpp tools/imatrix/imatrix.cpp
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from liquidcli.errors import IntegrityError
from liquidcli.files import atomic_output
from liquidcli.gguf_file import open_gguf

from .imatrix import COUNTS, DATASETS, SUMS, is_dat, names_in, read_dat, read_imatrix

Entry = tuple[np.ndarray, np.ndarray]  # sums [n_matrices, n_per_row] float32, counts [n_matrices or 1] int64


@dataclass
class Sums:
    """What was counted in some files, by matrix."""

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Of the texts; a matrix that was always used has seen them all."""
        return max((int(counts.max()) for _, counts in self.entries.values()), default=0)

    def n_chunks(self, chunk_tokens: int) -> int:
        return self.n_tokens // chunk_tokens

    @property
    def n_unseen(self) -> int:
        """Experts that no token was sent to."""
        return int(sum((counts == 0).sum() for _, counts in self.entries.values() if counts.size > 1))

    @property
    def n_unused(self) -> int:
        """Matrices that no token used, as those of an adapter whose layer always ran."""
        return sum(not counts.any() for _, counts in self.entries.values() if counts.size == 1)

    def add(self, name: str, sums: np.ndarray, counts: np.ndarray, path: Path) -> None:
        """A file in the older form has one count for all experts."""
        if name not in self.entries:
            self.entries[name] = sums.copy(), counts.copy()
            return
        had, had_counts = self.entries[name]
        if had.size != sums.size or (len(had_counts) != len(counts) and 1 not in (len(had_counts), len(counts))):
            raise IntegrityError(
                f"{path} is of another model: it has {sums.size} sums for {name!r}, the others have {had.size}"
            )
        n = max(len(had_counts), len(counts))
        self.entries[name] = had.reshape(n, -1) + sums.reshape(n, -1), np.broadcast_to(had_counts + counts, n).copy()


def read_sums(paths: Iterable[Path], chunk_tokens: int) -> Sums:
    """All files added up; `chunk_tokens` is what a chunk of the older form is taken for."""
    found = Sums()
    for path in paths:
        checked = read_imatrix(path)  # complete and finite, or an error that says what is missing
        found.datasets += checked.datasets
        for name, sums, counts in _of_dat(path, chunk_tokens) if is_dat(path) else _of_gguf(path):
            found.add(name, sums, counts, path)
    return found


def _of_gguf(path: Path) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
    with open_gguf(path, require_architecture=False) as f:
        if DATASETS not in f.metadata:
            raise IntegrityError(f"{path} is no importance matrix: it has no {DATASETS}")
        for name in names_in(f):
            counts = np.floor(f.array(name + COUNTS).ravel().astype(np.float64) + 0.5).astype(np.int64)
            yield name, f.array(name + SUMS).reshape(len(counts), -1), counts


def _of_dat(path: Path, chunk_tokens: int) -> Iterable[tuple[str, np.ndarray, np.ndarray]]:
    for name, n_calls, sums in read_dat(path).entries:
        yield name, (sums * np.float32(chunk_tokens))[None], np.array([n_calls * chunk_tokens], np.int64)


def write_dat(path: Path, entries: Mapping[str, Entry], *, dataset: str, n_chunks: int, chunk_tokens: int) -> list[str]:
    """The older form; the names of the matrices that it leaves out, for nothing is known of them."""
    asked = {name: entry for name, entry in sorted(entries.items()) if entry[1].any()}
    parts = [struct.pack("<i", len(asked))]
    for name, (sums, counts) in asked.items():
        n_calls = -(-int(counts.max()) // chunk_tokens)
        raw = name.encode()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", n_calls, sums.size)]
        parts.append(_means(sums.reshape(len(counts), -1), counts, n_calls).tobytes())
    raw = dataset.encode()
    parts += [struct.pack("<ii", n_chunks, len(raw)), raw]
    data = b"".join(parts)
    with atomic_output(path, len(data)) as part:
        part.write_bytes(data)
    return [name for name in entries if name not in asked]


def _means(sums: np.ndarray, counts: np.ndarray, n_calls: int) -> np.ndarray:
    """Times the number of calls, of experts that nobody asked 1: [n_matrices, n_per_row] float32."""
    shares = counts.astype(np.float32)[:, None]
    means = np.where(shares > 0, sums / np.where(shares > 0, shares, 1), 1).astype(np.float32)
    return (means * np.float32(n_calls)).astype("<f4")
