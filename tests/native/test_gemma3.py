"""Gemma 3 as `liquid`: not one bit differs from llama.cpp's own graph at full depth, at the gates' depth it does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli.gates.apply import apply_pack
from liquidcli.gguf_file import check_loadable, open_gguf
from liquidcli.reference import LiquidForCausalLM
from tests.gate_packs import write_tiny_pack
from tests.native.parity import NativeModel
from tests.native.test_identity import digest
from tests.tiny import make_model
from tests.tiny_families import GEMMA3, SPAN2
from tests.tiny_gguf import write_gemma3, write_gguf

STOCK = {**GEMMA3, "attention_multiplier": float(1 / np.sqrt(np.float32(GEMMA3["head_dim"])))}
STEP6 = {"num_hidden_layers": 7, "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]}
WIDE = {"num_hidden_layers": 62, "layer_types": ["full_attention"] * 62, "attention_multiplier": 0.25}
UNSAID = {"attention.sliding_window_pattern": None, "rope.freq_base_swa": None}


def gemma3(**changes: Any) -> LiquidForCausalLM:
    return make_model({**STOCK, **changes})


def test_without_gates(tmp_path: Path) -> None:
    model = gemma3()
    stock = digest(write_gemma3(model, tmp_path / "gemma3.gguf"))
    assert digest(write_gguf(model, tmp_path / "liquid.gguf")) == stock
    capped = write_gguf(model, tmp_path / "capped.gguf", {"final_logit_softcapping": 30.0})
    assert digest(write_gemma3(model, tmp_path / "both.gguf", {"final_logit_softcapping": 30.0})) == digest(capped)
    assert digest(capped) != stock


@pytest.mark.parametrize("key", ["rope.freq_base_swa", "attention.scale", "embedding_scale", "feed_forward.activation"])
def test_the_digest_sees_each_key(key: str, tmp_path: Path) -> None:
    model = gemma3()
    assert digest(write_gguf(model, tmp_path / "a.gguf")) != digest(write_gguf(model, tmp_path / "b.gguf", {key: None}))


@pytest.mark.parametrize("kv_policy", ["project", "drop"])
def test_full_depth(kv_policy: str, tmp_path: Path) -> None:
    gated = gemma3(depth={**SPAN2, "adapter_size": 32, "kv_policy": kv_policy})
    plain = gemma3()
    plain.load_state_dict(gated.state_dict(), strict=False)
    liquid = write_gguf(gated, tmp_path / "liquid.gguf")
    assert digest(liquid, "full") == digest(write_gemma3(plain, tmp_path / "gemma3.gguf")) != digest(liquid)


@pytest.mark.parametrize(
    ("changes", "override"),
    [
        ({}, {}),
        ({"rope_scaling": None}, {"attention.key_length": 32}),
        ({**STEP6, "rope_local_base_freq": 10000.0}, UNSAID),
        ({**STEP6, "layer_types": ["full_attention"] * 7}, {}),
        (WIDE, {}),
    ],
    ids=["said", "no scaling", "what it says nothing of", "no windows", "as many layers as 27B"],
)
def test_a_pack_applied(changes: dict[str, Any], override: dict[str, Any], tmp_path: Path) -> None:
    model = gemma3(**changes)
    base, out = write_gemma3(model, tmp_path / "base.gguf", override), tmp_path / "out.gguf"
    spans = (0, 1, 2, 0, *[0] * (model.config.num_hidden_layers - 4))
    apply_pack(base, write_tiny_pack(tmp_path / "pack.gguf", base, spans=spans), out)
    with open_gguf(out) as f:
        check_loadable(f)
    assert digest(out, "full") == digest(base) != digest(out)


def test_keys_that_cannot_be_meant_are_refused_by_the_library(tmp_path: Path) -> None:
    """The checks of files stand before it; a program of its own has the library alone."""
    odd: list[dict[str, Any]] = [
        {"feed_forward.activation": "relu"},
        {"embedding_scale": -1.0},
        {"rope.scaling.type": "yarn"},
    ]
    for i, override in enumerate(odd):
        path = write_gguf(gemma3(), tmp_path / f"{i}.gguf", override)
        with pytest.raises(RuntimeError, match=next(iter(override))):
            NativeModel(path)


@pytest.mark.oracle
def test_the_stock_graph_is_untouched(tmp_path: Path) -> None:
    stock = write_gemma3(gemma3(), tmp_path / "gemma3.gguf")
    assert digest(stock) == digest(stock, library=os.environ["LIQUID_ORACLE_DIR"])
