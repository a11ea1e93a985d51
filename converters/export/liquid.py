"""The keys of a `liquid` GGUF back to LiquidForCausalLM's config.json: experts, windows, depth gates.

Knows which defaults the runtime gives to keys that a file leaves out. Tensors are left to the rows.
"""

from __future__ import annotations

from typing import Any

from gguf import ExpertGatingFuncType

from liquidcli.errors import LiquidError
from liquidcli.gate_layout import STEMS
from liquidcli.gguf_file import GGUFFile

from ..scales import ACTIVATIONS
from .configs import Target, shared
from .keys import Keys
from .rope import shortest

SCORING = {ExpertGatingFuncType.SOFTMAX: "softmax", ExpertGatingFuncType.SIGMOID: "sigmoid"}


def liquid_target(f: GGUFFile, keys: Keys) -> Target:
    config = {"architectures": ["LiquidForCausalLM"], "model_type": "liquid", **shared(keys)}
    n_layer = config["num_hidden_layers"]
    config |= _attention(f, keys, n_layer) | _feed_forward(f, keys, n_layer) | _scales(f, keys, n_layer)
    for name in ("role.tensors", "role.names"):  # follow from the gates
        keys.raw(name)
    present = []
    if keys.integer("depth.version", 0):
        config["depth"] = _depth(f, keys, n_layer)
        present = [
            f"model.layers.{i}.{stem}.dec.weight"
            for i in range(n_layer)
            for stem in STEMS.values()
            if f"blk.{i}.{stem}_dec.weight" in f.tensors
        ]
    return Target(config, frozenset(present), exact_gate=bool(present))


def _attention(f: GGUFFile, keys: Keys, n_layer: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_layout": keys.word("rope.type", "norm"),
        "qk_norm": keys.word("attention.qk_norm", "none"),
        "attention_bias": "blk.0.attn_q.bias" in f.tensors,
        "attention_out_bias": "blk.0.attn_output.bias" in f.tensors,
        **_windows(keys, n_layer),
    }
    if (layers := keys.items("rope.layers", n_layer, None)) is not None:
        found["no_rope_layers"] = [int(one) for one in layers]
    length, scale = keys.integer("attention.temperature_length", 0), keys.number("attention.temperature_scale", 0.0)
    if length and scale:
        found |= {"attn_temperature_tuning": True, "floor_scale": length, "attn_scale": shortest(scale)}
    if clip := keys.number("attention.clamp_kqv", 0.0):
        found["clip_qkv"] = shortest(clip)
    return found


def _windows(keys: Keys, n_layer: int) -> dict[str, Any]:
    kind = keys.word("attention.window_type", "none")
    size = keys.integer("attention.sliding_window", 0)
    pattern = keys.raw("attention.sliding_window_pattern")
    if kind == "none" or not size:
        return {}
    if not isinstance(pattern, list) or len(pattern) != n_layer:
        raise LiquidError(f"{keys.file.path}: windows are exported from a pattern with one value for each layer")
    types = [f"{kind}_attention" if windowed else "full_attention" for windowed in pattern]
    return {"layer_types": types, {"sliding": "sliding_window", "chunked": "attention_chunk_size"}[kind]: size}


def _scales(f: GGUFFile, keys: Keys, n_layer: int) -> dict[str, Any]:
    words = {
        "embedding_scale": "embedding_multiplier",
        "attention.scale": "attention_multiplier",
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    found: dict[str, Any] = {word: shortest(value) for key, word in words.items() if (value := keys.number(key, None))}
    keys.only("feed_forward.activation", *ACTIVATIONS.values(), why="silu and gelu are known")
    if keys.word("feed_forward.activation", "silu") == "gelu":
        found["hidden_act"] = "gelu_pytorch_tanh"
    norms = [f"blk.{i}.post_{half}_norm.weight" in f.tensors for i in range(n_layer) for half in ("attention", "ffw")]
    if any(norms) and not all(norms):
        raise LiquidError(f"{f.path}: norms behind the halves are exported where every layer has both")
    return found | ({"sandwich_norm": True} if any(norms) else {})


def _feed_forward(f: GGUFFile, keys: Keys, n_layer: int) -> dict[str, Any]:
    dense = keys.integer("feed_forward_length")
    n_expert = keys.integer("expert_count", 0)
    mixed = keys.items("moe_layers", n_layer, [bool(n_expert)] * n_layer)
    if not n_expert or not any(mixed):
        return {"intermediate_size": dense, "intermediate_size_mlp": dense}
    return {
        "moe_layers": [i for i, is_mixed in enumerate(mixed) if is_mixed],
        "num_local_experts": n_expert,
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "intermediate_size": keys.integer("expert_feed_forward_length", dense),
        "scoring_func": SCORING.get(keys.integer("expert_gating_func"), ""),
        "norm_topk_prob": keys.flag("expert_weights_norm"),
        "routed_scaling_factor": shortest(keys.number("expert_weights_scale", 1.0) or 1.0),
        "expert_weight_before_ffn": keys.flag("expert_weight_before_ffn", False),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length", 0),
        "intermediate_size_mlp": dense,
    }


def _depth(f: GGUFFile, keys: Keys, n_layer: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gate_kind": keys.word("depth.gate_kind"),
        "gate_span": keys.items("depth.gate_span", n_layer),
        "threshold": shortest(keys.number("depth.threshold")),
        "kv_policy": keys.word("depth.kv_policy"),
        "ffn_scaled_by_gate": keys.flag("depth.ffn_scaled_by_gate"),
        "adapter_scaled_by_gate": keys.flag("depth.adapter_scaled_by_gate"),
        "min_layers": keys.integer("depth.min_layers", 0),
        "always_run_tokens": keys.integer("depth.always_run_tokens", 0),
        "adapter_size": _width(f, "depth_skip_gate.weight"),
        "gate_rank": _width(f, *(f"{stem}_enc.weight" for stem in STEMS.values())),
    }
    if (scopes := keys.items("depth.gate_scope", n_layer, None)) is not None:
        found["gate_scope"] = scopes
    if (exits := keys.items("depth.gate_exit", n_layer, None)) is not None:
        found["gate_exit"] = exits
    thresholds = keys.items("depth.calibration.threshold", None, None)
    fractions = keys.items("depth.calibration.executed_fraction", None, None)
    if thresholds and fractions:
        found["calibration"] = {
            "threshold": [shortest(one) for one in thresholds],
            "executed_fraction": [shortest(one) for one in fractions],
        }
    return found


def _width(f: GGUFFile, *ends: str) -> int:
    """Rows of the first tensor whose name below its layer is one of these; 0 without one."""
    return next((info.shape[-1] for name, info in f.tensors.items() if name.split(".", 2)[-1] in ends), 0)
