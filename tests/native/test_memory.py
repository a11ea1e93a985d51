"""Whatever is done to a context's memory, a gated model says what the reference says when the same is done to its own.

And at full depth what the stock architecture says, to the last bit. Small versions of tests.native.shifting.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.native.parity import Setting
from tests.native.rearranged import NativeSide
from tests.native.shifting import beside_reference, beside_twin
from tests.tiny import make_model, random_tokens
from tests.tiny_families import DROPS
from tests.tiny_gguf import write_gguf

TOLERANCE = 1e-3
N_TOKENS = 200

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


@pytest.mark.parametrize(("family", "setting"), SETTINGS, ids=lambda p: "-".join(p) if isinstance(p, dict) else p)
def test_any_order_of_memory_operations(family: str, setting: dict[str, bool]) -> None:
    found = beside_reference(N_TOKENS, family=family, setting=Setting(swa_full=True, n_ubatch=16, **setting))
    assert found.n_flips == 0
    assert found.logit_diff <= TOLERANCE
    assert 0 < found.n_skipped < found.n_pairs and len(found.operations) >= (3 if family in WINDOWED else 6)


@pytest.mark.parametrize("kv_policy", ["project", "drop"])
@pytest.mark.parametrize(
    ("cache", "flash", "head_dim"), [("f16", True, 64), ("f32", False, 32), ("q8_0", True, 32), ("q4_0", True, 64)]
)
def test_full_depth_is_the_stock_architecture_after_any_memory_operations(
    kv_policy: str, cache: str, flash: bool, head_dim: int
) -> None:
    found = beside_twin(400, kv_policy=kv_policy, cache=cache, flash=flash, head_dim=head_dim)
    assert found.n_different == 0 and len(found.operations) >= 8


@pytest.mark.parametrize("family", ["span2-adapter", "drop-span2"])
@pytest.mark.parametrize("one", [False, True])
def test_a_state_holds_keys_at_their_new_positions(family: str, one: bool, tmp_path: Path) -> None:
    """Saved after cells were moved, before any token was computed there."""
    model = make_model(family)
    side = NativeSide(write_gguf(model, tmp_path / "tiny.gguf"), Setting())
    tokens = random_tokens(model.config, 1, 40)[0].tolist()
    answers = []
    for save in (lambda: None, (lambda: side.save_and_load_one(0)) if one else side.save_and_load):
        side.clear()
        side.decode(0, 0, tokens[:30])
        side.seq_rm(0, 3, 20)
        side.seq_add(0, 20, 30, -17)
        save()
        answers.append(side.decode(0, 13, tokens[30:]))
    side.close()
    assert np.abs(answers[0] - answers[1]).max() <= 1e-5 * np.abs(answers[0]).max()


@pytest.mark.parametrize("family", ["flexidepth", "chunked"])
def test_state_of_another_model_is_refused(family: str, tmp_path: Path) -> None:
    sides = [
        NativeSide(write_gguf(make_model(name, seed=seed), tmp_path / f"{seed}.gguf"), Setting(swa_full=True))
        for name, seed in ((family, 7), ("flexidepth", 8))
    ]
    sides[0].decode(0, 0, [5, 6, 7])
    lib, size = sides[0].lib, sides[0].lib.llama_state_get_size(sides[0].ctx)
    buffer = (ctypes.c_uint8 * size)()
    lib.llama_state_get_data(sides[0].ctx, buffer, size)
    assert lib.llama_state_set_data(sides[1].ctx, buffer, size) == 0
    for side in sides:
        side.close()
