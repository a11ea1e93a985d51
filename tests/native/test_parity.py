"""Decisions and logits of the native library equal the reference's, for every family, every way of feeding tokens.

Small versions; `python -m tests.native.parity --family all --pairs 100000` is the full measurement.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.core_families import core_first
from tests.native.parity import Comparison, NativeModel, Setting, run_family
from tests.tiny import make_model, random_tokens
from tests.tiny_families import ATTENTION, DROPS, EXITS, EXPERTS, FAMILIES, GATES, GEMMAS, SCOPES
from tests.tiny_gguf import write_gguf

LOGIT_TOLERANCE = 1e-3  # max |difference| / max |reference|
FLIP_TOLERANCE = 1e-4  # share of decisions
ROUNDED_TOLERANCE = 1e-2  # with flash attention llama.cpp rounds an F32 cache to F16
FRACTION_TOLERANCE = 1e-9
N_SEQ, N_TOKENS = 4, 40

FEEDING = [
    Setting("tokens"),
    Setting("prompt"),
    Setting("mixed"),
    Setting("tokens", flash=True),
    Setting("mixed", flash=True),
]
ENGINES = [Setting("tokens", engine="DENSE"), Setting("tokens", engine="FLAGS")]
SPLITTING = [Setting("prompt", n_ubatch=7), Setting("mixed", n_ubatch=5), Setting("mixed", kv_unified=False)]
DEPTHS = [Setting("tokens", depth=depth) for depth in ("full", 0.35, 0.8)]
DEPTHS += [Setting("mixed", depth=depth) for depth in ("full", 0.35, 0.8)]
FORCED = [Setting(schedule, depth="forced") for schedule in ("tokens", "prompt", "mixed")]


def assert_close(result: Comparison) -> None:
    """Flash attention: decisions near their threshold flip, and with few tokens no share of them can be held to."""
    where = f"{result.family}, {result.setting}: {result}"
    assert result.logit_diff <= ROUNDED_TOLERANCE and result.max_w_diff <= ROUNDED_TOLERANCE, where
    assert result.dropped <= 0.8 * (result.pairs + result.dropped), where


def assert_equal(result: Comparison) -> None:
    where = f"{result.family}, {result.setting}: {result}"
    assert result.flips <= FLIP_TOLERANCE * result.pairs, where
    assert result.expert_flips <= FLIP_TOLERANCE * result.expert_pairs, where
    assert result.logit_diff <= LOGIT_TOLERANCE, where
    assert not result.fraction_diff > FRACTION_TOLERANCE, where
    assert result.dropped <= 0.5 * (result.pairs + result.dropped), where


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_however_tokens_are_fed(family: str) -> None:
    for result in run_family(family, FEEDING, N_SEQ, N_TOKENS):
        (assert_close if result.setting.flash else assert_equal)(result)


@pytest.mark.parametrize("family", core_first([*GATES, *EXPERTS, *SCOPES, *EXITS, *DROPS, *GEMMAS]))
def test_engines_and_thresholds_and_forced_decisions(family: str) -> None:
    for result in run_family(family, [*ENGINES, *DEPTHS, *FORCED], N_SEQ, N_TOKENS):
        assert_equal(result)


@pytest.mark.parametrize("family", core_first([*GATES, *SCOPES, *EXITS, *DROPS, *GEMMAS]))
def test_as_programs_run_it(family: str) -> None:
    """No trace, flash attention: only the rows that run are computed. Decisions are forced: rounding flips some."""
    settings = [Setting(s, flash=True, depth="forced", trace=False) for s in ("tokens", "prompt", "mixed")]
    for result in run_family(family, settings, N_SEQ, N_TOKENS):
        assert_close(result)
        assert result.fraction_diff <= FRACTION_TOLERANCE, result


@pytest.mark.parametrize(
    "family",
    [
        *("span2-adapter", "flexidepth", "moe", "sliding", "chunked", "llama4", "every-scope", "exit-halves"),
        *("drop-span2", "gemma3"),
    ],
)
def test_small_ubatches_and_separate_streams(family: str) -> None:
    for result in run_family(family, SPLITTING, N_SEQ, N_TOKENS):
        assert_equal(result)


@pytest.mark.parametrize("family", [name for name, keys in ATTENTION.items() if "layer_types" in keys])
def test_windows_with_a_full_sized_cache(family: str) -> None:
    for result in run_family(
        family, [Setting("tokens", swa_full=True), Setting("mixed", swa_full=True)], N_SEQ, N_TOKENS
    ):
        assert_equal(result)


@pytest.mark.parametrize(
    "family",
    [
        *("flexidepth", "span3-scaled", "moe-span3-scaled", "llama4", "min-layers", "every-scope", "moe-ffn"),
        *("gemma3-capped-span", "gemma3-every-scope", "gemma3-exit", "gemma3-drop"),
        *("exit-around", "drop-adapter", "drop-span3", "drop-attn-ffn", "drop-exit-around", "drop-chunked"),
    ],
)
@pytest.mark.parametrize("depth", ["auto", "forced"])
def test_engines_agree_bit_for_bit(family: str, depth: str, tmp_path: Path) -> None:
    """One token at a time: nodes switched off, or everything computed and masked."""
    model = make_model(family)
    native = NativeModel(write_gguf(model, tmp_path / "tiny.gguf"))
    tokens = random_tokens(model.config, 1, N_TOKENS).numpy()
    forced = None
    if depth == "forced":  # the last gate always skips: a state that was copied where it should be added to shows there
        forced = np.random.default_rng(1).integers(0, 2, (*tokens.shape, native.info.n_gate)).astype(np.uint8)
        forced[..., -1] = 0
    rows = [native.run(tokens, Setting("tokens", depth=depth, engine=e), forced) for e in ("FLAGS", "DENSE")]
    native.close()
    assert np.array_equal(rows[0].run, rows[1].run) and not rows[0].run.all()
    assert np.array_equal(rows[0].logits, rows[1].logits)
    assert rows[0].executed_fraction == rows[1].executed_fraction < 1
