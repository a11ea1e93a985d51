"""Writes a reference model as an F32 `liquid` GGUF, key by key from the architecture's table, by the gguf package.

Deliberately not the converter: the native library is checked through this, and the converter against this.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from liquidcli.reference import LiquidConfig, LiquidForCausalLM
from liquidcli.reference.rope import llama3_factors
from tests.tiny import SPECIAL, make_tokenizer

GATING = {"softmax": 1, "sigmoid": 2}
HALVES = ("", "_attn", "_ffn")
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
    "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
    **{f"depth_gate{half}.{part}": f"depth_gate{half}_{part}" for half in HALVES for part in ("enc", "norm", "dec")},
    **{f"depth_gate{half}.head": f"depth_gate{half}" for half in HALVES},
    "depth_adapter.gate_proj": "depth_skip_gate",
    "depth_adapter.up_proj": "depth_skip_up",
    "depth_adapter.down_proj": "depth_skip_down",
}
# what llama.cpp derives from the name `gemma3`
OF_GEMMA3 = ("rope.type", "attention.qk_norm", "attention.window_type", "attention.scale", "embedding_scale",
             "feed_forward.activation")  # fmt: skip
MODEL_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _shape_keys(c: LiquidConfig) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size_mlp or c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.dimension_count": c.head_dim,
    }


def _rope_keys(c: LiquidConfig) -> dict[str, Any]:
    scaling, kind = c.rope_scaling or {}, c.rope_type
    keys: dict[str, Any] = {"rope.freq_base": float(c.rope_theta), "rope.type": c.rope_layout}
    if c.rope_local_base_freq is not None:
        keys["rope.freq_base_swa"] = float(c.rope_local_base_freq)
    if c.no_rope_layers is not None:
        keys["rope.layers"] = [bool(x) for x in c.no_rope_layers]
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        keys["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        optional = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
        keys |= {name: scaling[theirs] for theirs, name in optional.items() if theirs in scaling}
        if "attention_factor" in scaling:  # llama.cpp multiplies its own 1 + 0.1 ln(factor) by this
            keys["rope.scaling.attn_factor"] = scaling["attention_factor"] / (1 + 0.1 * math.log(scaling["factor"]))
    return keys


def _attention_keys(c: LiquidConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {"attention.qk_norm": c.qk_norm, "attention.window_type": c.window_type}
    if c.window_type != "none":
        windowed = [c.has_window(layer) for layer in range(c.num_hidden_layers)]
        keys |= {"attention.sliding_window": c.window_size, "attention.sliding_window_pattern": windowed}
    if c.attn_temperature_tuning:
        keys |= {"attention.temperature_length": c.floor_scale, "attention.temperature_scale": c.attn_scale}
    if c.clip_qkv is not None:
        keys["attention.clamp_kqv"] = c.clip_qkv
    return keys


def _scale_keys(c: LiquidConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "attention.scale": c.attention_multiplier,
        "final_logit_softcapping": c.final_logit_softcapping,
    }
    if c.embedding_multiplier != 1:
        keys["embedding_scale"] = c.embedding_multiplier
    if c.hidden_act != "silu":
        keys["feed_forward.activation"] = "gelu"
    return {name: value for name, value in keys.items() if value is not None}


def _expert_keys(c: LiquidConfig) -> dict[str, Any]:
    if not c.moe_layers:
        return {}
    keys = {
        "moe_layers": [layer in c.moe_layers for layer in range(c.num_hidden_layers)],
        "expert_count": c.num_local_experts,
        "expert_used_count": c.num_experts_per_tok,
        "expert_feed_forward_length": c.intermediate_size,
        "expert_gating_func": GATING[c.scoring_func],
        "expert_weights_norm": c.norm_topk_prob,
        "expert_weights_scale": c.routed_scaling_factor,
        "expert_weight_before_ffn": c.expert_weight_before_ffn,
    }
    if c.shared_expert_intermediate_size:
        keys["expert_shared_feed_forward_length"] = c.shared_expert_intermediate_size
    return keys


def _depth_keys(c: LiquidConfig) -> dict[str, Any]:
    if (depth := c.depth) is None:
        return {}
    same = ("gate_kind", "threshold", "kv_policy", "ffn_scaled_by_gate", "adapter_scaled_by_gate")
    keys = {"version": 1, "gate_span": list(depth.gate_span), **{name: getattr(depth, name) for name in same}}
    keys |= {name: getattr(depth, name) for name in ("min_layers", "always_run_tokens") if getattr(depth, name)}
    lists = {name: getattr(depth, name) for name in ("gate_scope", "gate_exit")}
    keys |= {name: list(values) for name, values in lists.items() if values is not None}
    return {f"depth.{name}": value for name, value in keys.items()}


def metadata(config: LiquidConfig) -> dict[str, Any]:
    """Every `liquid.` key of this configuration, without the prefix."""
    groups = (_shape_keys, _rope_keys, _attention_keys, _scale_keys, _expert_keys, _depth_keys)
    return {name: value for group in groups for name, value in group(config).items()}


def _interleave(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Half-split rows of each head to adjacent pairs: the `norm` layout."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _layer_tensor(config: LiquidConfig, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    if name == "feed_forward.experts.gate_up_proj":
        gate, up = value.transpose(1, 2).chunk(2, dim=1)  # [n_expert, size, hidden] each
        return {"ffn_gate_exps.weight": gate, "ffn_up_exps.weight": up}
    if name == "feed_forward.experts.down_proj":
        return {"ffn_down_exps.weight": value.transpose(1, 2)}
    stem, kind = name.rsplit(".", 1)
    if config.rope_layout == "norm" and stem.endswith((".q_proj", ".k_proj", ".q_norm", ".k_norm")):
        value = _interleave(value, config.head_dim)
    if name.startswith("depth_gate") and name.endswith(".head.weight"):
        value = value.flatten()
    return {f"{LAYER_TENSORS[stem]}.{kind}": value}


def tensors(model: LiquidForCausalLM) -> dict[str, np.ndarray]:
    """All GGUF tensors, F32, in numpy order."""
    out: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if name in MODEL_TENSORS:
            out[MODEL_TENSORS[name]] = value
            continue
        _, _, layer, rest = name.split(".", 3)
        out |= {f"blk.{layer}.{key}": tensor for key, tensor in _layer_tensor(model.config, rest, value).items()}
    if (factors := llama3_factors(model.config)) is not None:
        out["rope_freqs.weight"] = factors
    return {name: np.ascontiguousarray(value.float().numpy()) for name, value in out.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, config: LiquidConfig, add_bos: bool) -> None:
    tokenizer = json.loads(make_tokenizer(config.vocab_size).to_str())
    ids = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    names = sorted(ids, key=ids.__getitem__)
    added = {t["content"]: t["special"] for t in tokenizer["added_tokens"]}
    kinds = [
        gguf.TokenType.CONTROL if added.get(n) else gguf.TokenType.USER_DEFINED if n in added else 1 for n in names
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(ids[SPECIAL[0]])
    writer.add_eos_token_id(ids[SPECIAL[1]])
    writer.add_add_bos_token(add_bos)


def write_gemma3(model: LiquidForCausalLM, path: Path, override: dict[str, Any] | None = None) -> Path:
    """The same weights as llama.cpp's own architecture; they must be what its graph takes for granted."""
    return write_gguf(model, path, {**dict.fromkeys(OF_GEMMA3), **(override or {})}, arch="gemma3")


def write_gguf(
    model: LiquidForCausalLM,
    path: Path,
    override: dict[str, Any] | None = None,
    chat_template: str | None = None,
    arch: str = "liquid",
    add_bos: bool = False,
) -> Path:
    """`override` replaces or, with None, removes keys (without prefix): odd and broken files for tests."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, value in {**metadata(model.config), **(override or {})}.items():
        if value is not None:
            _add(writer, f"{arch}.{key}", value)
    _add_tokenizer(writer, model.config, add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, array in tensors(model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
