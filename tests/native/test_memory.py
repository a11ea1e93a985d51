"""After every memory operation of llama.h a gated model says what the reference says with the same memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from liquidcli.llama import depth as depth_api
from tests.cached import CachedReference
from tests.native.parity import N_PARALLEL, NativeModel, Setting
from tests.tiny import make_model, random_tokens
from tests.tiny_families import DROPS
from tests.tiny_gguf import write_gguf

TOLERANCE = 1e-3
N_STEPS = 40
MAX_LENGTH = 60


class Both:
    """The same tokens and the same memory operations on both sides."""

    def __init__(self, family: str, folder: Path, **setting: bool) -> None:
        torch.set_num_threads(1)
        model = make_model(family)
        self.reference = CachedReference(model)
        self.native = NativeModel(write_gguf(model, folder / "tiny.gguf"))
        self.lib = self.native.lib
        self.ctx = self.native.context(Setting(swa_full=True, **setting), 256)
        self.memory = self.lib.llama_get_memory(self.ctx)
        self.batch = self.lib.llama_batch_init(64, 0, 1)
        self.n_compared = self.n_skipped = 0
        depth_api.set_trace(self.ctx, True)

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.ctx)
        self.native.close()

    def decode(self, seq: int, tokens: list[int]) -> None:
        """One llama_decode of all `tokens`; every token is compared."""
        first = self.reference.next_position(seq)
        positions = np.arange(first, first + len(tokens))
        self.native._decode(self.ctx, self.batch, np.array(tokens), np.full(len(tokens), seq), positions)
        pointer = ctypes.cast(self.lib.llama_get_logits(self.ctx), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(pointer, shape=(len(tokens), self.native.n_vocab)).copy()
        trace = depth_api.trace(self.ctx, self.native.info)
        for i, token in enumerate(tokens):
            expected, runs = self.reference.decode(seq, token)
            row = int((trace.pos == positions[i]).argmax())
            assert trace.run[row].tolist() == runs, f"sequence {seq}, position {positions[i]}"
            assert np.abs(logits[i] - expected.numpy()).max() <= TOLERANCE * float(expected.abs().max())
            self.n_compared += 1
            self.n_skipped += runs.count(False)

    def remove(self, seq: int, start: int, end: int) -> None:
        assert self.lib.llama_memory_seq_rm(self.memory, seq, start, end)
        self.reference.seq_rm(seq, start, end)

    def shift(self, seq: int, start: int, delta: int) -> None:
        self.lib.llama_memory_seq_add(self.memory, seq, start, -1, delta)
        self.reference.seq_add(seq, start, 1 << 30, delta)

    def copy(self, source: int, target: int) -> None:
        self.remove(target, 0, 1 << 30)
        self.lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self.reference.seq_cp(source, target)

    def keep(self, seq: int) -> None:
        self.lib.llama_memory_seq_keep(self.memory, seq)
        self.reference.seq_keep(seq)

    def whole(self, seq: int) -> bool:
        """Caches of windowed layers forget what no later token will see; what was forgotten cannot be returned to."""
        return self.lib.llama_memory_seq_pos_min(self.memory, seq) == 0

    def save_and_load(self) -> None:
        """The whole state out, the memory wiped, the state back in."""
        size = self.lib.llama_state_get_size(self.ctx)
        buffer = (ctypes.c_uint8 * size)()
        assert self.lib.llama_state_get_data(self.ctx, buffer, size) == size
        self.lib.llama_memory_clear(self.memory, True)
        assert self.lib.llama_state_set_data(self.ctx, buffer, size) == size

    def save_and_load_one(self, seq: int) -> None:
        size = self.lib.llama_state_seq_get_size(self.ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        assert self.lib.llama_state_seq_get_data(self.ctx, buffer, size, seq) == size
        assert self.lib.llama_memory_seq_rm(self.memory, seq, -1, -1)
        assert self.lib.llama_state_seq_set_data(self.ctx, buffer, size, seq) == size


@pytest.fixture
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    family, setting = request.param
    sides = Both(family, tmp_path, **setting)
    yield sides
    assert sides.n_compared > 0
    sides.close()


FAMILIES = [
    "flexidepth",
    "span2-adapter",
    "min-layers",
    "always-run",
    "rope-layers",
    "rope-none",
    "qk-l2",
    "rope-yarn-odd",
    "moe",
    "every-scope",
    "exit-halves",
]
WINDOWED = ["sliding", "chunked", "llama4"]
SETTINGS = [(family, {}) for family in [*FAMILIES, *WINDOWED, *DROPS]]
SETTINGS += [("span2-adapter", {"kv_unified": False}), ("drop-span2", {"kv_unified": False})]


@pytest.mark.parametrize("both", SETTINGS, indirect=True, ids=lambda p: "-".join([p[0], *p[1]]))
def test_any_order_of_memory_operations(both: Both) -> None:
    random = np.random.default_rng(5)
    stream = iter(random_tokens(both.reference.config, 1, 2000, seed=2)[0].tolist())
    shared: set[int] = set()  # sequences with cells in common: llama.cpp moves a shared cell for all of them
    for _ in range(N_STEPS):
        seq = int(random.integers(N_PARALLEL))
        length = both.reference.next_position(seq)
        what = random.choice(["decode", "decode", "rewind", "shift", "copy", "keep", "state", "seq state"])
        if what == "rewind" and length > 3 and both.whole(seq):
            both.remove(seq, length - int(random.integers(1, 4)), 1 << 30)
        elif what == "shift" and length > 8 and seq not in shared and both.whole(seq):
            both.remove(seq, 2, 5)
            both.shift(seq, 5, -3)
        elif what == "copy" and length:
            target = (seq + 1) % N_PARALLEL
            both.copy(seq, target)
            shared |= {seq, target}
        elif what == "keep" and random.random() < 0.3:
            both.keep(seq)
            shared = set()
        elif what == "state":
            both.save_and_load()
        elif what == "seq state" and length:
            both.save_and_load_one(seq)
        elif length > MAX_LENGTH:
            both.remove(seq, 0, 1 << 30)
        both.decode(seq, [next(stream) for _ in range(int(random.choice([1, 1, 2, 5, 9])))])
    assert both.n_skipped > 0


@pytest.mark.parametrize("both", [("flexidepth", {}), ("chunked", {})], indirect=True, ids=lambda p: p[0])
def test_state_of_another_model_is_refused(both: Both, tmp_path: Path) -> None:
    both.decode(0, [5, 6, 7])
    size = both.lib.llama_state_get_size(both.ctx)
    buffer = (ctypes.c_uint8 * size)()
    both.lib.llama_state_get_data(both.ctx, buffer, size)
    other = make_model("flexidepth", seed=8)
    native = NativeModel(write_gguf(other, tmp_path / "other.gguf"))
    ctx = native.context(Setting(swa_full=True), 256)
    assert both.lib.llama_state_set_data(ctx, buffer, size) == 0
    both.lib.llama_free(ctx)
    native.close()
