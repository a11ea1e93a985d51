"""Qwen3-MoE: which layers are mixtures, what makes it `liquid`, and both spellings of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.config import Config
from liquidcli.errors import LiquidError
from liquidcli.gguf_file import open_gguf
from tests.families import chosen, model_of
from tests.hf_mixtures import make_config, make_tensors, stacks, write_mixture

# the keys of a published 30B-A3B configuration
PUBLISHED = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip


def test_the_published_configuration_is_stock_and_understood() -> None:
    config = Config(PUBLISHED)
    model, told = chosen(config)
    keys = {field.key: field.value for field in model.fields()}
    assert model.gguf_name == "qwen3moe" and told == [] and config.unknown() == []
    assert keys["qwen3moe.feed_forward_length"] == 6144 and keys["qwen3moe.expert_feed_forward_length"] == 768
    assert keys["qwen3moe.attention.key_length"] == 128 and keys["qwen3moe.rope.freq_base"] == 1e6


@pytest.mark.parametrize(
    ("changes", "moe"),
    [
        ({"norm_topk_prob": False}, (0, 1, 2, 3)),
        ({"decoder_sparse_step": 2}, (1, 3)),
        ({"decoder_sparse_step": 3}, (2,)),
        ({"mlp_only_layers": [0, 2]}, (1, 3)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1,)),
        ({"use_sliding_window": True, "sliding_window": 16}, (0, 1, 2, 3)),
    ],
)
def test_what_qwen3moe_cannot_say_becomes_liquid(changes: dict[str, Any], moe: tuple[int, ...], tmp_path: Path) -> None:
    config = make_config("qwen3_moe", **changes)
    tensors = make_tensors(config, moe=moe)
    plan = converters.plan(write_mixture(tmp_path / "m", config, tensors), "f32")
    assert plan.architecture == "liquid" and "llama.cpp's `qwen3moe`" in plan.warnings[0]
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        assert f.metadata["liquid.moe_layers"] == [layer in moe for layer in range(4)]
        assert f.metadata["liquid.expert_weights_norm"] is config["norm_topk_prob"]
        assert f.metadata["liquid.attention.qk_norm"] == "head" and f.metadata["liquid.rope.type"] == "neox"
        assert f.metadata["liquid.feed_forward_length"] == 48 and f.metadata["liquid.expert_feed_forward_length"] == 16
        np.testing.assert_array_equal(
            f.array(f"blk.{moe[0]}.ffn_down_exps.weight"), stacks(tensors, config, moe[0])["down"]
        )
        dense = set(range(4)) - set(moe)
        assert {name for name in f.tensors if name.endswith("ffn_up.weight")} == {
            f"blk.{layer}.ffn_up.weight" for layer in dense
        }


def test_fused_matrices_are_output_first(tmp_path: Path) -> None:
    config = make_config("qwen3_moe")
    apart, fused = make_tensors(config), make_tensors(config, fused=True)
    plan = converters.plan(write_mixture(tmp_path / "m", config, fused), "f32")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        for part, wanted in stacks(apart, config, 3).items():
            np.testing.assert_array_equal(f.array(f"blk.3.ffn_{part}_exps.weight"), wanted)


def test_the_number_of_experts_has_two_spellings() -> None:
    newer = {**PUBLISHED, "num_local_experts": 128}
    for values in (newer, {**newer, "num_experts": None}):
        assert model_of(Config(values)).experts.count == 128
    with pytest.raises(LiquidError, match="num_local_experts is 64"):
        model_of(Config({**PUBLISHED, "num_local_experts": 64}))


def test_no_experts_at_all_is_a_dense_model() -> None:
    model = model_of(Config({**PUBLISHED, "num_experts": 0}))
    assert model.gguf_name == "liquid" and not model.experts.layers
