"""Without gates the reference is the model it is named after: same weights, same logits as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from liquidcli.reference import LiquidConfig, LiquidForCausalLM, from_pretrained
from tests.tiny import random_tokens

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LENGTH = 40


def rope(**keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5000.0, **keys}}


LLAMAS = {
    "plain": rope(rope_type="default"),
    "head-dim": {"head_dim": 16, **rope(rope_type="default")},
    "tied": {"tie_word_embeddings": True},
    "bias": {"attention_bias": True},
    "linear": rope(rope_type="linear", factor=2.5),
    "yarn": rope(rope_type="yarn", factor=3.0, original_max_position_embeddings=32),
    "yarn-odd": rope(
        rope_type="yarn", factor=3.0, original_max_position_embeddings=32, beta_fast=5.0, attention_factor=1.3
    ),
    "llama3": rope(
        rope_type="llama3",
        factor=3.0,
        low_freq_factor=1.5,
        high_freq_factor=5.0,
        original_max_position_embeddings=32,
    ),
}


def randomized(model: Any) -> Any:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.data = 1 + 0.2 * noise if name.endswith("norm.weight") else 0.2 * noise
    return model.eval()


def assert_same_logits(ours: LiquidForCausalLM, theirs: Any) -> None:
    tokens = random_tokens(ours.config, 2, LENGTH)
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens).logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("keys", LLAMAS.values(), ids=LLAMAS)
def test_llama_folder(keys: dict, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SHAPE, intermediate_size=80, **keys)
    theirs = randomized(transformers.LlamaForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    assert_same_logits(from_pretrained(tmp_path), theirs)


def test_mistral_folder_with_sliding_windows(tmp_path: Path) -> None:
    config = transformers.MistralConfig(**SHAPE, intermediate_size=80, sliding_window=7, head_dim=12)
    theirs = randomized(transformers.MistralForCausalLM(config))
    theirs.save_pretrained(tmp_path)
    assert_same_logits(from_pretrained(tmp_path), theirs)


def liquid(theirs: Any, rename: dict[str, str], **keys: Any) -> LiquidForCausalLM:
    """The reference with the tensors of a transformers model, names replaced."""
    shape = {name: value for name, value in SHAPE.items() if name != "initializer_range"}
    ours = LiquidForCausalLM(LiquidConfig(**shape, **keys)).eval()
    tensors = {}
    for name, value in theirs.state_dict().items():
        for old, new in rename.items():
            name = name.replace(old, new)
        tensors[name] = value
    ours.load_state_dict(tensors)
    return ours


def test_qwen3_norms_each_head() -> None:
    config = transformers.Qwen3Config(**SHAPE, intermediate_size=80, head_dim=16)
    theirs = randomized(transformers.Qwen3ForCausalLM(config))
    base = config.rope_parameters["rope_theta"]
    keys = {"intermediate_size_mlp": 80, "head_dim": 16, "qk_norm": "head", "rope_theta": base}
    ours = liquid(theirs, {".mlp.": ".feed_forward."}, rms_norm_eps=config.rms_norm_eps, **keys)
    assert_same_logits(ours, theirs)


def test_olmoe_norms_all_heads_and_keeps_weights_as_they_are() -> None:
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False, "intermediate_size": 32}
    config = transformers.OlmoeConfig(**SHAPE, **experts)
    theirs = randomized(transformers.OlmoeForCausalLM(config))
    transpose_experts(theirs)
    keys = {"moe_layers": range(4), "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 32}
    base = config.rope_parameters["rope_theta"]
    rename = {".mlp.gate.": ".feed_forward.router.", ".mlp.": ".feed_forward."}
    ours = liquid(theirs, rename, qk_norm="full", rope_theta=base, rms_norm_eps=config.rms_norm_eps, **keys)
    restore_experts(ours, theirs)
    assert_same_logits(ours, theirs)


def test_mixtral_renormalises_its_two_experts() -> None:
    config = transformers.MixtralConfig(**SHAPE, intermediate_size=32, num_local_experts=5, num_experts_per_tok=2)
    theirs = randomized(transformers.MixtralForCausalLM(config))
    transpose_experts(theirs)
    keys = {"moe_layers": range(4), "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 32}
    base = config.rope_parameters["rope_theta"]
    rename = {".mlp.gate.": ".feed_forward.router.", ".mlp.": ".feed_forward."}
    ours = liquid(theirs, rename, norm_topk_prob=True, rope_theta=base, rms_norm_eps=config.rms_norm_eps, **keys)
    restore_experts(ours, theirs)
    assert_same_logits(ours, theirs)


def expert_tensors(model: Any) -> list[Any]:
    return [tensor for name, tensor in model.named_parameters() if ".experts." in name]


def transpose_experts(theirs: Any) -> None:
    """[E, out, in] as most models store them -> [E, in, out] as Llama 4 does, for the copy."""
    for tensor in expert_tensors(theirs):
        tensor.data = tensor.data.transpose(1, 2).contiguous()


def restore_experts(ours: LiquidForCausalLM, theirs: Any) -> None:
    assert all(
        tensor.shape == other.shape for tensor, other in zip(expert_tensors(ours), expert_tensors(theirs), strict=True)
    )
    transpose_experts(theirs)


def test_llama4_text() -> None:
    """Interleaved layers, sigmoid weight before the expert, chunks, L2 norms after RoPE, temperature without it."""
    keys = {
        "intermediate_size": 32,
        "intermediate_size_mlp": 80,
        "head_dim": 12,
        "moe_layers": [1, 3],
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "no_rope_layers": [1, 0, 1, 0],
        "attention_chunk_size": 9,
        "floor_scale": 6,
        "attn_scale": 0.7,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
    }
    config = transformers.Llama4TextConfig(**SHAPE, use_qk_norm=True, pad_token_id=0, **keys)
    theirs = randomized(transformers.Llama4ForCausalLM(config))
    ours = liquid(
        theirs,
        {},
        qk_norm="l2",
        scoring_func="sigmoid",
        expert_weight_before_ffn=True,
        shared_expert_intermediate_size=32,
        attn_temperature_tuning=True,
        rope_theta=config.rope_parameters["rope_theta"],
        rms_norm_eps=config.rms_norm_eps,
        **keys,
    )
    for layer in ours.model.layers:  # theirs rotates adjacent pairs, ours the halves of a head
        for rows in (layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight):
            rows.data = rows.data.unflatten(0, (-1, 6, 2)).transpose(1, 2).flatten(0, 2)
    assert_same_logits(ours, theirs)


def test_gemma3() -> None:
    """Norms behind the halves, each plus one; windows with a base of their own; gelu; three scales and a cap."""
    keys = {
        "intermediate_size": 80,
        "head_dim": 16,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "final_logit_softcapping": 30.0,
    }
    full, local = {"rope_type": "linear", "factor": 2.5}, {"rope_type": "default", "rope_theta": 300.0}
    turns = {"full_attention": {**full, "rope_theta": 5000.0}, "sliding_attention": local}
    untied = {"tie_word_embeddings": False, "query_pre_attn_scalar": 20}
    theirs = randomized(
        transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**SHAPE, **keys, **untied, rope_parameters=turns))
    )
    ours = liquid(
        theirs,
        {
            ".post_attention_layernorm.": ".post_self_attn_layernorm.",
            ".pre_feedforward_layernorm.": ".post_attention_layernorm.",
            ".post_feedforward_layernorm.": ".post_mlp_layernorm.",
            ".mlp.": ".feed_forward.",
        },
        qk_norm="head",
        rope_theta=5000.0,
        rope_scaling=full,
        rope_local_base_freq=300.0,
        hidden_act="gelu_pytorch_tanh",
        sandwich_norm=True,
        embedding_multiplier=48**0.5,
        attention_multiplier=20**-0.5,
        rms_norm_eps=theirs.config.rms_norm_eps,
        **keys,
    )
    for name, weight in ours.named_parameters():
        weight.data += name.endswith("norm.weight")
    assert_same_logits(ours, theirs)
