"""OLMoE: norms over the whole width, weights as the router gives them, and the clamp that nobody here computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.errors import LiquidError
from liquidcli.gguf_file import open_gguf
from tests.hf_mixtures import make_config, make_tensors, stacks, write_mixture


def test_tensors_and_keys(tmp_path: Path) -> None:
    config = make_config("olmoe", rms_norm_eps=1e-3)
    tensors = make_tensors(config)
    plan = converters.plan(write_mixture(tmp_path / "m", config, tensors), "f32")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        assert f.metadata["general.architecture"] == "olmoe" and plan.warnings == ()
        assert f.metadata["olmoe.feed_forward_length"] == 48
        assert f.metadata["olmoe.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3)
        for part, wanted in stacks(tensors, config, 0).items():
            np.testing.assert_array_equal(f.array(f"blk.0.ffn_{part}_exps.weight"), wanted)
        for name in ("q_norm", "k_norm", "q_proj"):
            wanted = tensors[f"model.layers.1.self_attn.{name}.weight"]
            np.testing.assert_array_equal(f.array(f"blk.1.attn_{name.removesuffix('_proj')}.weight"), wanted)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob is true"),
        ({"num_key_value_heads": 2}, "as many key heads as query heads"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
    ],
)
def test_what_olmoe_cannot_say_becomes_liquid(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = make_config("olmoe", **changes)
    tensors = make_tensors(config)
    if config["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    plan = converters.plan(write_mixture(tmp_path / "m", config, tensors))
    keys = {field.key: field.value for field in plan.fields}
    assert plan.architecture == "liquid" and why in plan.warnings[0]
    assert keys["liquid.attention.qk_norm"] == "full" and keys["liquid.rope.type"] == "neox"
    assert keys["liquid.expert_weights_norm"] is config["norm_topk_prob"]


def test_a_clamp_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = make_config("olmoe", clip_qkv=8.0)
    with pytest.raises(LiquidError, match=r"clip_qkv is 8\.0, which is not supported: .* behind their norms"):
        converters.plan(write_mixture(tmp_path / "m", config, make_tensors(config)))
