"""Many tokens at once: computing only the rows that run gives what computing all and masking gives, to the last bit.

Decisions are forced: a gate next to its threshold may fall either way when kernels see another number of rows.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from liquidcli.llama import depth as depth_api
from tests.core_families import core_first
from tests.native.parity import NativeModel, Setting
from tests.tiny import make_model, random_tokens
from tests.tiny_families import FAMILIES
from tests.tiny_gguf import write_gguf

N_SEQ, N_TOKENS = 2, 40
GATED = [name for name in FAMILIES if not name.startswith("plain")]
AMPLIFIED = 1e-3  # flash attention casts keys to F16: there the last bit of an F32 may move the last bit of an F16
RATES = (0.0, 0.5, 1.0)  # share of decisions that run


def logits(
    native: NativeModel, tokens: np.ndarray, forced: np.ndarray, engine: str, n_ubatch: int, n_threads: int = 1
) -> np.ndarray:
    """Each sequence as one prompt, then one more token of each; no trace, so that no form is ruled out."""
    setting = Setting("prompt", flash=True, depth="forced", n_ubatch=n_ubatch, n_threads=n_threads)
    ctx = native.context(setting, N_TOKENS + 1)
    batch = native.lib.llama_batch_init(N_TOKENS + 1, 0, 1)
    native._set_depth(ctx, setting, forced)
    depth_api.set_engine(ctx, depth_api.ExecutionEngine[engine])
    found = []
    for positions in (np.arange(N_TOKENS), np.array([N_TOKENS])):
        for seq in range(N_SEQ):
            native._decode(ctx, batch, tokens[seq, positions], np.full(len(positions), seq), positions)
            pointer = ctypes.cast(native.lib.llama_get_logits(ctx), ctypes.POINTER(ctypes.c_float))
            found.append(np.ctypeslib.as_array(pointer, shape=(len(positions), native.n_vocab)).copy())
    fraction = depth_api.stats(ctx)
    native.lib.llama_batch_free(batch)
    native.lib.llama_free(ctx)
    return np.concatenate([*found, np.full((1, native.n_vocab), fraction.n_layer_runs, np.float32)])


@pytest.mark.parametrize("family", core_first(GATED))
def test_rows_equal_masking(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    native = NativeModel(write_gguf(model, tmp_path / "tiny.gguf"))
    tokens = random_tokens(model.config, N_SEQ, N_TOKENS + 1).numpy()
    random = np.random.default_rng(5)
    for rate in RATES:
        forced = (random.random((*tokens.shape, native.info.n_gate)) < rate).astype(np.uint8)
        for n_ubatch in (N_TOKENS, 9):
            rows = logits(native, tokens, forced, "AUTO", n_ubatch)
            dense = logits(native, tokens, forced, "DENSE", n_ubatch)
            assert np.array_equal(rows, logits(native, tokens, forced, "AUTO", n_ubatch, n_threads=3))
            error = np.abs(rows - dense).max(1) / np.abs(dense[:-1]).max()
            first = error[np.argmax(error > 0)]
            assert first <= 2e-6, f"rate {rate}, ubatches of {n_ubatch}: {first}"
            assert error.max() <= AMPLIFIED, f"rate {rate}, ubatches of {n_ubatch}: {error.max()}"
            assert np.array_equal(rows[-1], dense[-1])
    native.close()
