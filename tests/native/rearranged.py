"""A native context whose memory is rearranged in every way llama.h knows, and the random life that does it.

A life is drawn once and applied to several sides: native contexts, and the plain bookkeeping of tests.cached that says
which cells there are. Knows no tolerance and compares nothing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from liquidcli.llama import depth as depth_api
from liquidcli.llama.context import CACHE_TYPES
from tests.cached import END, Cells
from tests.native.parity import N_PARALLEL, NativeModel, Setting

ROOM = 64  # tokens that one step may take
LONGEST = 160  # positions; a context shift makes room beyond


class Side(Protocol):
    def seq_rm(self, seq: int, start: int = 0, end: int = END) -> None: ...
    def seq_cp(self, source: int, target: int, start: int = 0, end: int = END) -> None: ...
    def seq_keep(self, seq: int) -> None: ...
    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None: ...


class NativeSide:
    """One context of a model file."""

    def __init__(
        self, path: Path, setting: Setting, *, n_ctx: int = 1024, cache: str = "f32", full: bool = False
    ) -> None:
        self.native = NativeModel(path)
        self.lib = self.native.lib
        self.ctx = self.native.context(setting, n_ctx // N_PARALLEL, CACHE_TYPES[cache])
        self.memory = self.lib.llama_get_memory(self.ctx)
        self.batch = self.lib.llama_batch_init(ROOM, 0, 1)
        depth_api.set_engine(self.ctx, depth_api.ExecutionEngine[setting.engine])
        if full:
            depth_api.set_depth(self.ctx, depth_api.Mode.FULL)

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.ctx)
        self.native.close()

    def decode(self, seq: int, first: int, tokens: list[int]) -> np.ndarray:  # [n_tokens, n_vocab]
        positions = np.arange(first, first + len(tokens))
        self.native._decode(self.ctx, self.batch, np.array(tokens), np.full(len(tokens), seq), positions)
        pointer = ctypes.cast(self.lib.llama_get_logits(self.ctx), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self.native.n_vocab)).copy()

    def seq_rm(self, seq: int, start: int = 0, end: int = END) -> None:
        assert self.lib.llama_memory_seq_rm(self.memory, seq, start, end)

    def seq_cp(self, source: int, target: int, start: int = 0, end: int = END) -> None:
        whole = (start, end) == (0, END)
        self.lib.llama_memory_seq_cp(self.memory, source, target, *((-1, -1) if whole else (start, end)))

    def seq_keep(self, seq: int) -> None:
        self.lib.llama_memory_seq_keep(self.memory, seq)

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        self.lib.llama_memory_seq_add(self.memory, seq, start, end, delta)

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.memory, True)

    def first_position(self, seq: int) -> int:
        return self.lib.llama_memory_seq_pos_min(self.memory, seq)

    def save_and_load(self) -> None:
        """The whole state out, the memory wiped, the state back in."""
        size = self.lib.llama_state_get_size(self.ctx)
        buffer = (ctypes.c_uint8 * size)()
        assert self.lib.llama_state_get_data(self.ctx, buffer, size) == size
        self.clear()
        assert self.lib.llama_state_set_data(self.ctx, buffer, size) == size

    def save_and_load_one(self, seq: int) -> None:
        """In a shared memory the sequence has cells of its own afterwards."""
        size = self.lib.llama_state_seq_get_size(self.ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        assert self.lib.llama_state_seq_get_data(self.ctx, buffer, size, seq) == size
        assert self.lib.llama_memory_seq_rm(self.memory, seq, -1, -1)
        assert self.lib.llama_state_seq_set_data(self.ctx, buffer, size, seq) == size


@dataclass
class Life:
    """Draws operations and applies them to the cells and to every native side.

    save_moved: states may be saved while keys have yet to be rotated to their cells' new positions. forgetful: the
    memory lets go of what windows have passed.
    """

    cells: Cells
    natives: list[NativeSide]
    n_ctx: int = 1024
    save_moved: bool = True
    forgetful: bool = False
    seed: int = 23
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self._moved = False

    @property
    def sides(self) -> list[Side]:
        return [self.cells, *self.natives]

    def step(self) -> tuple[int, int]:
        """Some operation; then the sequence that is to be continued, and by how many tokens."""
        seq = int(self.random.integers(N_PARALLEL))
        name = str(self.random.choice(list(OPERATIONS), p=[share for _, share in OPERATIONS.values()]))
        operation = OPERATIONS[name][0]
        if operation and self.cells.positions(seq) and (name in ANY_TIME or self.whole(seq)):
            operation(self, seq)
            self.counts[name] = self.counts.get(name, 0) + 1
        if self.cells.next_position(seq) > LONGEST:
            (self.shift_context if self.whole(seq) else self.remove)(seq)
        if self.cells.n_cells() > self.n_ctx - ROOM:
            self.remove(max(range(N_PARALLEL), key=lambda s: len(self.cells.positions(s))))
        self._moved = False
        return seq, int(self.random.choice([1, 1, 1, 2, 5, 11, 23]))

    def whole(self, seq: int) -> bool:
        """Caches of windowed layers forget what no later token will see; what was forgotten cannot be returned to.

        They may forget it for one of the sequences that share a cell, and llama.h does not tell.
        """
        held = self.cells.cells[seq]
        if self.forgetful and any(set(held) & set(cells) for s, cells in self.cells.cells.items() if s != seq):
            return False
        return all(native.first_position(seq) == min(cell.position for cell in held) for native in self.natives)

    def remove(self, seq: int, start: int = 0, end: int = END) -> None:
        for side in self.sides:
            side.seq_rm(seq, start, end)

    def move(self, seq: int, start: int, delta: int) -> None:
        self._moved = True
        for side in self.sides:
            side.seq_add(seq, start, END, delta)

    def rewind(self, seq: int) -> None:
        end = self.cells.next_position(seq)
        self.remove(seq, max(0, end - int(self.random.integers(1, 20))))

    def _middle(self, seq: int) -> tuple[int, int]:
        """Some positions before the last."""
        last = self.cells.next_position(seq) - 1
        start = int(self.random.integers(0, last + 1))
        return start, min(last, start + int(self.random.integers(1, 15)))

    def cut_middle(self, seq: int) -> None:
        self.remove(seq, *self._middle(seq))

    def close_gap(self, seq: int) -> None:
        start, end = self._middle(seq)
        self.remove(seq, start, end)
        self.move(seq, end, start - end)

    def open_gap(self, seq: int) -> None:
        self.move(seq, self._middle(seq)[0], int(self.random.integers(1, 9)))

    def move_out(self, seq: int) -> None:
        """Some of the first cells end up before position 0: llama.cpp forgets them."""
        self.move(seq, 0, -int(self.random.integers(1, 6)))

    def shift_context(self, seq: int) -> None:
        """As llama.cpp's programs do it: the first few stay, half of the others go, the rest moves down."""
        end = self.cells.next_position(seq)
        n_gone = (end - 4) // 2
        if n_gone > 0:
            self.remove(seq, 4, 4 + n_gone)
            self.move(seq, 4 + n_gone, -n_gone)

    def copy(self, seq: int) -> None:
        target = (seq + int(self.random.integers(1, N_PARALLEL))) % N_PARALLEL
        whole = not self.cells.shared or self.random.random() < 0.5
        part = (0, END if whole else int(self.random.integers(1, self.cells.next_position(seq) + 1)))
        self.remove(target)
        for side in self.sides:
            side.seq_cp(seq, target, *part)

    def keep(self, seq: int) -> None:
        for side in self.sides:
            side.seq_keep(seq)

    def state(self, seq: int) -> None:
        if self.save_moved or not self._moved:
            for native in self.natives:
                native.save_and_load()

    def state_of_one(self, seq: int) -> None:
        if self.save_moved or not self._moved:
            for native in self.natives:
                native.save_and_load_one(seq)
            self.cells.own(seq)

    def state_when_moved(self, seq: int) -> None:
        """Saved before any token was computed at the new positions."""
        self.close_gap(seq)
        (self.state if self.random.random() < 0.5 else self.state_of_one)(seq)


OPERATIONS = {
    "decode": (None, 0.30),
    "rewind": (Life.rewind, 0.10),
    "cut_middle": (Life.cut_middle, 0.10),
    "close_gap": (Life.close_gap, 0.12),
    "open_gap": (Life.open_gap, 0.06),
    "move_out": (Life.move_out, 0.04),
    "shift_context": (Life.shift_context, 0.04),
    "copy": (Life.copy, 0.10),
    "keep": (Life.keep, 0.01),
    "state": (Life.state, 0.05),
    "state_of_one": (Life.state_of_one, 0.04),
    "state_when_moved": (Life.state_when_moved, 0.04),
}
ANY_TIME = ("copy", "keep", "state", "state_of_one")
