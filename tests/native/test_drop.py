"""kv_policy = drop: what is stored, what it weighs, and that no way of using a context changes what a token says.

That its answers are the reference's is asserted beside the other families: test_parity, test_rows, test_memory.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli.llama import depth as depth_api
from liquidcli.llama.context import CACHE_TYPES
from tests.native.parity import N_PARALLEL, NativeModel, Setting
from tests.tiny import make_model, random_tokens
from tests.tiny_families import ADAPTED
from tests.tiny_gguf import write_gguf

N_TOKENS = 60
TOLERANCE = 2e-6  # of the largest logit: kernels sum in another order when slots lie in another
Mode = depth_api.Mode


class Context:
    """One native context of a tiny model, its decisions taken from a random table."""

    def __init__(
        self, family: str | dict[str, Any], folder: Path, setting: Setting | None = None, cache: str = "f32"
    ) -> None:
        model = make_model(family)
        self.config = model.config
        self.native = NativeModel(write_gguf(model, folder / "tiny.gguf"))
        self.lib = self.native.lib
        self.ctx = self.native.context(setting or Setting(), N_TOKENS, CACHE_TYPES[cache])
        self.memory = self.lib.llama_get_memory(self.ctx)
        self.batch = self.lib.llama_batch_init(N_TOKENS, 0, 1)
        self.tokens = random_tokens(self.config, N_PARALLEL, N_TOKENS).numpy()
        shape = (N_PARALLEL, N_TOKENS, self.native.info.n_gate)
        self.forced = np.random.default_rng(3).integers(0, 2, shape).astype(np.uint8)
        self.use(Mode.FORCED)

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.ctx)
        self.native.close()

    def use(self, mode: Mode) -> None:
        assert depth_api.set_depth(self.ctx, mode)
        if mode is Mode.FORCED:
            assert depth_api.set_forced(self.ctx, self.forced)

    def decode(self, start: int, end: int, seq: int = 0) -> np.ndarray:  # [end - start, n_vocab]
        positions = np.arange(start, end)
        seqs = np.full(len(positions), seq)
        self.native._decode(self.ctx, self.batch, self.tokens[seq, positions], seqs, positions)
        pointer = ctypes.cast(self.lib.llama_get_logits(self.ctx), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(len(positions), self.native.n_vocab)).copy()

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.memory, True)

    @property
    def row_bytes(self) -> int:  # K and V of one token in one layer, F32
        return 2 * 4 * self.config.num_key_value_heads * self.config.head_dim

    def stored(self, n_tokens: int, seq: int = 0) -> int:
        """How many layers keep K and V, over the first n_tokens, as the table decides (no exits)."""
        gates = depth_api.gates(self.native.pointer, self.native.info.n_gate)
        skipped = 0
        for i, gate in enumerate(gates):
            if gate.scope != depth_api.Scope.FFN:
                skipped += gate.span * int((self.forced[seq, :n_tokens, i] == 0).sum())
        return n_tokens * self.native.info.n_layer - skipped


@pytest.fixture
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    made = Context(getattr(request, "param", "drop-span2"), tmp_path)
    yield made
    made.close()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("context", ["drop", "drop-span2", "drop-attn-ffn", "drop-sliding"], indirect=True)
def test_bytes_are_those_of_the_layers_that_ran(context: Context) -> None:
    assert depth_api.kv_bytes(context.ctx) == 0
    context.decode(0, 40)
    assert depth_api.kv_bytes(context.ctx) == context.row_bytes * context.stored(40)
    for position in range(40, 50):
        context.decode(position, position + 1)
    assert depth_api.kv_bytes(context.ctx) == context.row_bytes * context.stored(50)
    assert context.stored(50) < 0.9 * 50 * context.native.info.n_layer


def test_full_stores_everything_and_project_always_does(context: Context, tmp_path: Path) -> None:
    context.use(Mode.FULL)
    context.decode(0, 20)
    assert depth_api.kv_bytes(context.ctx) == context.row_bytes * 20 * context.native.info.n_layer
    (tmp_path / "other").mkdir()
    project = Context("span2-adapter", tmp_path / "other")
    project.decode(0, 20)
    assert depth_api.kv_bytes(project.ctx) == project.row_bytes * 20 * project.native.info.n_layer
    project.close()


def test_removed_tokens_give_their_bytes_back(context: Context) -> None:
    whole = context.decode(0, 50)
    for position in range(50, 58):
        context.decode(position, position + 1)
    assert context.lib.llama_memory_seq_rm(context.memory, 0, 30, -1)
    assert depth_api.kv_bytes(context.ctx) == context.row_bytes * context.stored(30)
    assert_same(context.decode(30, 50), whole[30:])
    context.clear()
    assert depth_api.kv_bytes(context.ctx) == 0


def test_tokens_moved_out_of_the_context_are_forgotten(context: Context) -> None:
    """What comes to lie before position 0 is gone; its cells may be anybody's, and no layer may take him for it."""
    context.decode(0, 30, 1)
    alone = context.decode(0, 20, 0)
    context.lib.llama_memory_seq_add(context.memory, 1, 0, -1, -30)
    assert depth_api.kv_bytes(context.ctx) == context.row_bytes * context.stored(20)
    context.lib.llama_memory_seq_rm(context.memory, 0, -1, -1)
    assert_same(context.decode(0, 20, 0), alone)
    context.clear()
    context.decode(0, 10, 1)
    context.lib.llama_memory_seq_add(context.memory, 1, 0, -1, -30)
    assert_same(context.decode(0, 20, 0), alone)


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("cache", ["q8_0", "q4_0"])
def test_quantized_memory_errs_as_much_as_where_everything_is_kept(cache: str, head_dim: int, tmp_path: Path) -> None:
    """Half of the decisions skip. At full depth not one bit differs: test_memory."""
    errors = {}
    for policy in ("project", "drop"):
        family = {"hidden_size": 128, "num_attention_heads": 128 // head_dim, "depth": {**ADAPTED, "kv_policy": policy}}
        found = {}
        for kind in ("f32", cache):
            folder = tmp_path / f"{policy}-{kind}"
            folder.mkdir()
            made = Context({**family, "num_key_value_heads": 2}, folder, Setting(flash=True), kind)
            found[kind] = np.concatenate([made.decode(0, 30), *(made.decode(i, i + 1) for i in range(30, 45))])
            made.close()
        errors[policy] = np.abs(found[cache] - found["f32"]).mean() / np.abs(found["f32"]).mean()
    assert 0 < errors["drop"] < 1.5 * errors["project"] < 0.5


def test_shared_tokens_are_stored_once(context: Context) -> None:
    context.decode(0, 30)
    before = depth_api.kv_bytes(context.ctx)
    context.lib.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
    assert depth_api.kv_bytes(context.ctx) == before
    context.lib.llama_memory_seq_rm(context.memory, 0, -1, -1)
    assert depth_api.kv_bytes(context.ctx) == before
    context.lib.llama_memory_seq_rm(context.memory, 1, -1, -1)
    assert depth_api.kv_bytes(context.ctx) == 0


def test_gaps_left_by_one_sequence_are_filled_by_another(context: Context) -> None:
    alone = [context.decode(0, 40, seq) for seq in range(2)]
    context.clear()
    context.decode(0, 40, 2)
    context.decode(0, 20, 1)
    context.lib.llama_memory_seq_rm(context.memory, 2, 10, 40)
    found = context.decode(0, 20, 0)
    assert_same(found, alone[0][:20])
    for position in range(20, 40):
        assert_same(context.decode(position, position + 1, 1), alone[1][position : position + 1])
    assert_same(context.decode(20, 40, 0), alone[0][20:])


@pytest.mark.parametrize("context", ["drop", "drop-span2", "drop-exit-around"], indirect=True)
@pytest.mark.parametrize("full_first", [True, False])
def test_depth_may_change_between_tokens(context: Context, full_first: bool) -> None:
    """Full depth for some tokens is a table that lets everything run for them."""
    full = slice(0, 25) if full_first else slice(25, 50)
    context.forced[:, full] = 1
    context.use(Mode.FORCED)
    expected = np.concatenate([context.decode(0, 25), context.decode(25, 49), context.decode(49, 50)])
    context.clear()
    context.use(Mode.FULL if full_first else Mode.FORCED)
    found = [context.decode(0, 25)]
    context.use(Mode.FORCED if full_first else Mode.FULL)
    found += [context.decode(25, 49), context.decode(49, 50)]
    assert_same(np.concatenate(found), expected)


def test_a_failed_evaluation_leaves_no_trace(context: Context) -> None:
    """Stopped after some layers have stored K and V: single tokens and prompts."""
    expected = context.decode(0, 50)
    context.clear()
    context.decode(0, 20)
    before = depth_api.kv_bytes(context.ctx)
    calls = iter(range(1000))
    stop = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(lambda _: next(calls) % 100 > 50)
    context.lib.llama_set_abort_callback(context.ctx, stop, None)
    for n in (1, 30):
        with pytest.raises(AssertionError, match="llama_decode returned 2"):
            context.decode(20, 20 + n)
        assert depth_api.kv_bytes(context.ctx) == before
    context.lib.llama_set_abort_callback(context.ctx, type(stop)(), None)
    assert_same(context.decode(20, 50), expected[20:])


GROWTH = """
import sys
from pathlib import Path
from tests.native.parity import NativeModel, Setting
from tests.tiny_gguf import write_gguf
from tests.tiny import make_model

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

native = NativeModel(write_gguf(make_model("drop"), Path(sys.argv[1]) / "tiny.gguf"))
native.lib.llama_free(native.context(Setting(n_ubatch=16), 256))
before = resident()
native.context(Setting(n_ubatch=16), int(sys.argv[2]))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_context_takes_no_memory_before_it_is_used(tmp_path: Path) -> None:
    n_tokens = 1 << 16
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, tmp_path, str(n_tokens)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    config = make_model("drop").config
    whole = N_PARALLEL * n_tokens * config.num_hidden_layers * 2 * 4 * config.num_key_value_heads * config.head_dim
    assert int(done.stdout) < 0.25 * whole, f"{done.stdout} of {whole}"
