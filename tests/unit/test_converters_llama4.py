"""Llama 4: published configurations are stock, any other interval, window or temperature is `liquid` and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.config import Config
from liquidcli.converters.registry import find
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import open_gguf
from tests.families import chosen
from tests.hf_mixtures import fuse, make_config, make_tensors, stacks, write_mixture

SCALING = {
    "factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
SCOUT = {
    "attention_bias": False, "attention_chunk_size": 8192, "attn_scale": 0.1, "attn_temperature_tuning": 4,
    "bos_token_id": 200000, "cache_implementation": "hybrid", "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192, "for_llm_compressor": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
    "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760, "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40,
    "num_experts_per_tok": 1, "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16,
    "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_scaling": SCALING, "rope_theta": 500000.0,
    "router_jitter_noise": 0.0, "torch_dtype": "bfloat16", "use_qk_norm": True, "vocab_size": 202048,
}  # fmt: skip
MAVERICK = {
    **SCOUT, "interleave_moe_layer_step": 2, "moe_layers": list(range(1, 48, 2)), "num_local_experts": 128,
    "use_qk_norm": False, "rope_scaling": None, "max_position_embeddings": 1048576, "attn_temperature_tuning": True,
    "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(48)],
}  # fmt: skip
IMAGES = {"vision_config": {"hidden_size": 1408}, "image_token_index": 200092, "boi_token_index": 200080,
          "eoi_token_index": 200081, "tie_word_embeddings": False}  # fmt: skip


def chosen_of(text: dict[str, Any]) -> tuple[Any, list[str]]:
    config = Config({"architectures": ["Llama4ForConditionalGeneration"], "text_config": text, **IMAGES})
    model, told = chosen(config)
    assert config.unknown() == []
    return model, told


def model_of(text: dict[str, Any]) -> Any:
    return chosen_of(text)[0]


def fields_of(model: Any) -> dict[str, Any]:
    return {field.key: field.value for field in model.fields()}


@pytest.mark.parametrize(("text", "step"), [(SCOUT, 1), (MAVERICK, 2)])
def test_published_configurations_are_stock(text: dict[str, Any], step: int) -> None:
    model, told = chosen_of(text)
    assert model.gguf_name == "llama4" and told == []
    keys = fields_of(model)
    assert keys["llama4.interleave_moe_layer_step"] == step
    assert keys["llama4.feed_forward_length"] == 16384 and keys["llama4.expert_feed_forward_length"] == 8192
    factors = model.generated().get("rope_freqs.weight")
    assert (factors is None) if step == 2 else (set(factors.tolist()) == {1.0, 16.0})


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"moe_layers": [0, 5]}, "moe_layers", [i in (0, 5) for i in range(48)]),
        ({"no_rope_layer_interval": 3}, "rope.layers", [(i + 1) % 3 != 0 for i in range(48)]),
        ({"no_rope_layers": [1] * 50}, "rope.layers", [True] * 48),
        ({"attention_chunk_size": 4096}, "attention.sliding_window", 4096),
        ({"floor_scale": 4096}, "attention.temperature_length", 4096),
        ({"attn_scale": 0.2}, "attention.temperature_scale", 0.2),
        ({"attn_temperature_tuning": False}, "attention.temperature_scale", None),
        ({"attn_temperature_tuning": 0}, "attention.temperature_scale", None),
        ({"use_qk_norm": False}, "attention.qk_norm", "none"),
        ({"num_local_experts": 128}, "attention.qk_norm", "l2"),
        ({"layer_types": ["full_attention"] * 48}, "attention.window_type", "none"),
        ({"attention_bias": True}, "rope.type", "norm"),
        ({"num_local_experts": 0, "moe_layers": [], "interleave_moe_layer_step": 0}, "feed_forward_length", 16384),
    ],
)
def test_every_other_configuration_is_liquid(changes: dict[str, Any], key: str, value: Any) -> None:
    model, told = chosen_of({**SCOUT, **changes})
    assert model.gguf_name == "liquid" and fields_of(model).get(f"liquid.{key}") == value
    assert len(told) == 1 and "llama.cpp's `llama4`" in told[0]


def test_what_transformers_leaves_open_is_not_guessed() -> None:
    with pytest.raises(IntegrityError, match="no_rope_layers has 3 entries for 48"):
        model_of({**SCOUT, "no_rope_layers": [1, 0, 1]})
    with pytest.raises(IntegrityError, match="chunked windows, but their size is missing"):
        model_of({**SCOUT, "attention_chunk_size": None})
    with pytest.raises(LiquidError, match="quantized already"):
        find({"architectures": ["Llama4ForCausalLM"]})[1](
            Config({**SCOUT, "quantization_config": {"quant_method": "fp8"}}), (), exact_gate=False
        )


@pytest.mark.parametrize("fused", [True, False])
def test_q_and_k_stay_and_experts_arrive_in_either_layout(fused: bool, tmp_path: Path) -> None:
    config = make_config("llama4_text", interleave_moe_layer_step=2)
    apart = make_tensors(config, moe=(1, 3))
    folder = write_mixture(tmp_path / "m", config, fuse(apart, config) if fused else apart)
    with open_gguf(converters.run(converters.plan(folder, "f32"), tmp_path / "m.gguf").output) as f:
        assert f.metadata["general.architecture"] == "llama4"
        for part, wanted in stacks(apart, config, 3).items():
            np.testing.assert_array_equal(f.array(f"blk.3.ffn_{part}_exps.weight"), wanted)
            shared = apart[f"model.layers.3.feed_forward.shared_expert.{part}_proj.weight"]
            np.testing.assert_array_equal(f.array(f"blk.3.ffn_{part}_shexp.weight"), shared)
            dense = apart[f"model.layers.0.feed_forward.{part}_proj.weight"]
            np.testing.assert_array_equal(f.array(f"blk.0.ffn_{part}.weight"), dense)
        for name in "qkv":
            wanted = apart[f"model.layers.2.self_attn.{name}_proj.weight"]
            np.testing.assert_array_equal(f.array(f"blk.2.attn_{name}.weight"), wanted)


def test_images_are_left_out_with_a_reason(tmp_path: Path) -> None:
    text = make_config("llama4_text")
    tensors = {f"language_model.{name}": one for name, one in make_tensors(text, fused=True).items()}
    images = {"vision_model.class_embedding": np.ones(4, np.float32), "multi_modal_projector.linear_1.weight": tensors[
        "language_model.model.norm.weight"]}  # fmt: skip
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        **IMAGES,
    }
    folder = write_mixture(tmp_path / "m", config, {**tensors, **images})
    plan = converters.plan(folder, "f32")
    assert plan.architecture == "llama4" and plan.warnings == ()
    assert {one.source.name: one.reason for one in plan.dropped} == dict.fromkeys(
        images, "only the text part is converted"
    )
    audio = {"audio_model.weight": np.ones(4, np.float32)}
    with pytest.raises(IntegrityError, match=r"1 of the checkpoint's .* audio_model\.weight"):
        converters.plan(write_mixture(tmp_path / "more", config, {**tensors, **audio}))
