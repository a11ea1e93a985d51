"""Tiny folders of dense families, written with numpy alone, and the configurations of published checkpoints.

Knows Mistral, Qwen2, Qwen3 and Gemma 3 under transformers' names. Uses neither torch nor the converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.hf_folders import CONFIG, llama_tensors, write_llama

Tensors = dict[str, np.ndarray]
NAMES = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3_text": "Gemma3"}
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16, "tie_word_embeddings": True},
}
GEMMA_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")

# as their makers published them, without what says nothing of the maths
QWEN2_5_7B = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
    "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
    "model_type": "qwen3", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
    "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144,
}  # fmt: skip
GEMMA3_27B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "model_type": "gemma3_text",
        "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}  # fmt: skip


def make_config(family: str, **changes: Any) -> dict[str, Any]:
    own = {"architectures": [f"{NAMES[family]}ForCausalLM"], "model_type": family, **OWN[family]}
    return {**CONFIG, **own, **changes}


def make_tensors(config: Mapping[str, Any]) -> Tensors:
    tensors = llama_tensors(config)
    random = np.random.default_rng(1)
    for i in range(config["num_hidden_layers"]):
        shapes = _extra_shapes(
            config, {key: len(tensors[f"model.layers.{i}.self_attn.{key}_proj.weight"]) for key in "qkvo"}
        )
        drawn = {f"model.layers.{i}.{name}": random.standard_normal(shape) for name, shape in shapes.items()}
        tensors |= {name: values.astype(np.float32) for name, values in drawn.items()}
    return tensors


def _extra_shapes(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """What a layer has besides Llama's; `sizes` are the rows of q, k, v and o."""
    family, biased = config["model_type"], config.get("attention_bias", False)
    found = {}
    for part in {"qwen2": "qkv"}.get(family, "qkvo" if biased else ""):
        found[f"self_attn.{part}_proj.bias"] = sizes[part]
    if family in ("qwen3", "gemma3_text"):
        found |= {f"self_attn.{part}_norm.weight": config["head_dim"] for part in "qk"}
    if family == "gemma3_text":
        found |= {f"{name}.weight": config["hidden_size"] for name in GEMMA_NORMS}
    return found


def write_dense(folder: Path, config: Mapping[str, Any], tensors: Tensors | None = None, dtype: str = "F32") -> Path:
    return write_llama(folder, config, tensors=make_tensors(config) if tensors is None else tensors, dtype=dtype)
