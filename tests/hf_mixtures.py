"""Tiny folders of mixtures, written with numpy alone, under the names of published checkpoints.

Knows Mixtral, Qwen3-MoE, OLMoE and Llama 4, experts fused or apart. Uses neither torch nor the converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.hf_folders import write_json, write_llama

Tensors = dict[str, np.ndarray]
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True,
        "moe_intermediate_size": 16, "decoder_sparse_step": 1, "mlp_only_layers": [], "head_dim": 8,
        "max_window_layers": 4, "use_sliding_window": False, "sliding_window": None,
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"], "num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": False,
        "clip_qkv": None, "num_key_value_heads": 4,
    },
    "llama4_text": {
        "architectures": ["Llama4ForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 1, "head_dim": 8,
        "intermediate_size_mlp": 64, "interleave_moe_layer_step": 1,
    },
}  # fmt: skip
# module, router, gate, up and down
NAMES = {
    "mixtral": ("block_sparse_moe", "gate", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "olmoe": ("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "llama4_text": ("feed_forward", "router", "gate_proj", "up_proj", "down_proj"),
}


def make_config(family: str, **changes: Any) -> dict[str, Any]:
    """A value of None removes the key."""
    values = {**SMALL, "model_type": family, **CONFIGS[family], **changes}
    return {key: value for key, value in values.items() if value is not None}


def make_tensors(config: Mapping[str, Any], *, moe: tuple[int, ...] = (0, 1, 2, 3), fused: bool = False) -> Tensors:
    """`moe`: the mixture layers. Llama 4's fused matrices lie input first, the others' output first."""
    random = np.random.default_rng(0)
    shapes = _shapes(config, moe)
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return fuse(tensors, config) if fused else tensors


def _shapes(config: Mapping[str, Any], moe: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    family, d = config["model_type"], config["hidden_size"]
    head = config.get("head_dim") or d // config["num_attention_heads"]
    q, k = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config["vocab_size"], d), "model.norm": (d,), "lm_head": (config["vocab_size"], d)
    }  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d), "self_attn.o_proj": (d, q),
        }  # fmt: skip
        if family in ("qwen3_moe", "olmoe"):
            full = family == "olmoe"
            layer |= {"self_attn.q_norm": (q if full else head,), "self_attn.k_norm": (k if full else head,)}
        layer |= _mixture(config) if i in moe else _dense(config)
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _mixture(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, count = config["hidden_size"], config.get("num_local_experts") or config["num_experts"]
    size = config.get("moe_intermediate_size") or config["intermediate_size"]
    module, router, gate, up, down = NAMES[config["model_type"]]
    found: dict[str, tuple[int, ...]] = {f"{module}.{router}": (count, d)}
    for e in range(count):
        expert = f"{module}.experts.{e}"
        found |= {f"{expert}.{gate}": (size, d), f"{expert}.{up}": (size, d), f"{expert}.{down}": (d, size)}
    if config["model_type"] == "llama4_text":
        shared = f"{module}.shared_expert"
        found |= {f"{shared}.{gate}": (size, d), f"{shared}.{up}": (size, d), f"{shared}.{down}": (d, size)}
    return found


def _dense(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, module = config["hidden_size"], NAMES[config["model_type"]][0]
    f = config.get("intermediate_size_mlp") or config["intermediate_size"]
    return {f"{module}.gate_proj": (f, d), f"{module}.up_proj": (f, d), f"{module}.down_proj": (d, f)}


def stacks(tensors: Tensors, config: Mapping[str, Any], layer: int) -> dict[str, np.ndarray]:
    """gate, up and down of all experts, [E, out, in]: what the GGUF must hold."""
    module, _, *parts = NAMES[config["model_type"]]
    source = f"model.layers.{layer}.{module}.experts"
    count = config.get("num_local_experts") or config["num_experts"]
    return {
        name: np.stack([tensors[f"{source}.{e}.{part}.weight"] for e in range(count)])
        for name, part in zip(("gate", "up", "down"), parts, strict=True)
    }


def fuse(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """As newer transformers keep them; Mixtral's module is called `mlp` then."""
    family, found = config["model_type"], {name: one for name, one in tensors.items() if ".experts." not in name}
    found = {name.replace("block_sparse_moe", "mlp"): one for name, one in found.items()}
    module = "mlp" if family == "mixtral" else NAMES[family][0]
    for layer in range(config["num_hidden_layers"]):
        if f"model.layers.{layer}.{module}.{NAMES[family][1]}.weight" not in found:
            continue
        gate, up, down = stacks(tensors, config, layer).values()
        both, source = np.concatenate([gate, up], axis=1), f"model.layers.{layer}.{module}.experts"
        if family == "llama4_text":
            both, down = both.swapaxes(1, 2), down.swapaxes(1, 2)
        found |= {f"{source}.gate_up_proj": both, f"{source}.down_proj": down}
    return found


def write_mixture(folder: Path, config: Mapping[str, Any], tensors: Tensors, **options: Any) -> Path:
    write_llama(folder, tensors=tensors, **options)
    write_json(folder / "config.json", config)
    return folder
