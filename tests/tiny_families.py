"""Tiny random models, one family per thing to get wrong: gate kinds, spans, experts, each attention and rope key.

A family is the keyword arguments of LiquidConfig that differ from BASE. Values are odd so that an unread key shows.
"""

from __future__ import annotations

from typing import Any

N_LAYER = 6
BASE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size_mlp": 96,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LINEAR = {"gate_kind": "linear", "gate_span": [1] * N_LAYER}
ADAPTED = {**LINEAR, "adapter_size": 32}
BOTTLENECK = {"gate_kind": "bottleneck", "gate_rank": 16, "gate_span": [1] * N_LAYER}
SPAN2 = {"gate_kind": "linear", "gate_span": [0, 2, 0, 0, 2, 0]}
SPAN3 = {"gate_kind": "bottleneck", "gate_rank": 16, "gate_span": [1, 3, 0, 0, 2, 0]}
SCALED = {"ffn_scaled_by_gate": True, "adapter_scaled_by_gate": True}
MOE = {
    "moe_layers": list(range(N_LAYER)),
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "intermediate_size": 48,
}
MIXED = {**MOE, "moe_layers": [1, 2, 5]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 3, "sliding_window": 7}
CHUNKED = {"layer_types": ["chunked_attention", "chunked_attention", "full_attention"] * 2, "attention_chunk_size": 11}
GEMMA3: dict[str, Any] = {
    "head_dim": 32,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "qk_norm": "head",
    "sandwich_norm": True,
    "hidden_act": "gelu_pytorch_tanh",
    "embedding_multiplier": 8.0,
    "attention_multiplier": 0.21,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "sliding_window": 9,
    "rope_theta": 5e4,
    "rope_local_base_freq": 300.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.5},
}
LLAMA3 = {"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.5, "high_freq_factor": 5.0}
YARN = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 64}

GATES: dict[str, dict[str, Any]] = {
    "linear": {"depth": {**LINEAR, "gate_bias": True}},
    "linear-adapter": {"depth": ADAPTED},
    "bottleneck": {"depth": {**BOTTLENECK, "gate_bias": True}},
    "bottleneck-folded": {"depth": {**BOTTLENECK, "gate_folded": True, "adapter_size": 32}},
    "threshold": {"depth": {**LINEAR, "gate_bias": True, "threshold": 0.3}},
    "span2": {"depth": SPAN2},
    "span2-adapter": {"depth": {**SPAN2, "gate_bias": True, "adapter_size": 64}},
    "span3-scaled": {"depth": {**SPAN3, **SCALED, "adapter_size": 32}},
    "ffn-scaled": {"depth": {**LINEAR, "ffn_scaled_by_gate": True}},
    "adapter-scaled": {"depth": {**ADAPTED, "adapter_scaled_by_gate": True}},
    "min-layers": {"depth": {**ADAPTED, "min_layers": 4}},
    "min-layers-span": {"depth": {**SPAN3, "min_layers": 3}},
    "always-run": {"depth": {**ADAPTED, "always_run_tokens": 5}},
    "flexidepth": {
        "num_hidden_layers": 8,
        "rope_layout": "norm",
        "rope_theta": 500000.0,
        "depth": {
            "gate_kind": "bottleneck",
            "gate_span": [0, 0, 0, 0, 1, 1, 1, 1],
            "gate_rank": 4,
            "adapter_size": 32,
            "threshold": 0.5,
            **SCALED,
        },
    },
}
EXPERTS: dict[str, dict[str, Any]] = {
    "moe": {**MOE, "depth": ADAPTED},
    "moe-renormalised": {**MIXED, "norm_topk_prob": True, "depth": LINEAR},
    "moe-scaled-weights": {**MIXED, "routed_scaling_factor": 1.7, "num_experts_per_tok": 3, "depth": LINEAR},
    "moe-sigmoid-shared": {**MIXED, "scoring_func": "sigmoid", "shared_expert_intermediate_size": 40, "depth": LINEAR},
    "moe-before-ffn": {**MIXED, "expert_weight_before_ffn": True, "scoring_func": "sigmoid", "depth": LINEAR},
    "moe-one-expert-used": {**MIXED, "num_experts_per_tok": 1, "depth": {**SPAN2, "gate_bias": True}},
    "moe-span3-scaled": {**MIXED, "norm_topk_prob": True, "depth": {**SPAN3, **SCALED, "adapter_size": 32}},
    "llama4": {
        **MIXED,
        **CHUNKED,
        "num_experts_per_tok": 1,
        "scoring_func": "sigmoid",
        "expert_weight_before_ffn": True,
        "shared_expert_intermediate_size": 48,
        "qk_norm": "l2",
        "rope_layout": "norm",
        "no_rope_layers": [1, 1, 0] * 2,
        "attn_temperature_tuning": True,
        "floor_scale": 9,
        "attn_scale": 0.7,
        "depth": LINEAR,
    },
}
ATTENTION: dict[str, dict[str, Any]] = {
    "rope-norm": {"rope_layout": "norm"},
    "rope-none": {"rope_layout": "none"},
    "rope-layers": {"no_rope_layers": [1, 0, 1, 1, 0, 1]},
    "rope-theta": {"rope_theta": 123.0},
    "rope-linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "rope-llama3": {"rope_layout": "norm", "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
    "rope-yarn": {"rope_scaling": YARN},
    "rope-yarn-odd": {"rope_scaling": {**YARN, "beta_fast": 5.0, "beta_slow": 2.0, "attention_factor": 1.3}},
    "qk-head": {"qk_norm": "head"},
    "qk-head-norm": {"qk_norm": "head", "rope_layout": "norm", "attention_bias": True},
    "qk-full": {"qk_norm": "full"},
    "qk-full-norm": {"qk_norm": "full", "rope_layout": "norm"},
    "qk-l2": {"qk_norm": "l2", "no_rope_layers": [1, 1, 0, 1, 1, 1], "rms_norm_eps": 1e-2},
    "bias": {"attention_bias": True, "attention_out_bias": False},
    "bias-out": {"attention_bias": True},
    "sliding": SLIDING,
    "sliding-all": {"layer_types": ["sliding_attention"] * N_LAYER, "sliding_window": 5},
    "chunked": CHUNKED,
    "temperature": {
        "no_rope_layers": [1, 0, 0, 1, 1, 0],
        "attn_temperature_tuning": True,
        "floor_scale": 5,
        "attn_scale": 0.9,
    },
    "clamp": {"clip_qkv": 0.8, "attention_bias": True},
    "clamp-qk-head": {"clip_qkv": 0.8, "qk_norm": "head"},
    "head-dim": {"head_dim": 24},
    "one-kv-head": {"num_key_value_heads": 1},
    "all-kv-heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "eps": {"rms_norm_eps": 0.05},
}
NO_GATES: dict[str, dict[str, Any]] = {"plain": {}, "plain-moe": MIXED, "plain-gemma3": GEMMA3}


HALVES = {"gate_scope": ["attn+ffn"] * N_LAYER}
ATTN = {"gate_scope": ["attn"] * N_LAYER}
FFN = {"gate_scope": ["ffn"] * N_LAYER}
EVERY_SCOPE = {"gate_span": [1, 1, 2, 0, 1, 1], "gate_scope": ["layer", "attn", "layer", "layer", "ffn", "attn+ffn"]}
EXIT = {"gate_span": [0, 0, 0, 3, 0, 0], "gate_exit": [i == 3 for i in range(N_LAYER)]}
EXITS2 = {"gate_span": [0, 0, 4, 0, 2, 0], "gate_exit": [i in (2, 4) for i in range(N_LAYER)]}
AROUND = {**EXIT, "gate_span": [1, 2, 0, 3, 1, 1]}
EXIT_AMONG_HALVES = {
    "gate_span": [1, 1, 4, 1, 1, 1],
    "gate_scope": ["ffn", "attn+ffn", "layer", "layer", "attn", "attn+ffn"],
    "gate_exit": [i == 2 for i in range(N_LAYER)],
}
SCOPES: dict[str, dict[str, Any]] = {
    "attn": {"depth": {**LINEAR, **ATTN, "gate_bias": True}},
    "attn-bottleneck": {"depth": {**BOTTLENECK, **ATTN}},
    "ffn": {"depth": {**LINEAR, **FFN, "gate_bias": True}},
    "ffn-adapter": {"depth": {**BOTTLENECK, **FFN, "gate_folded": True, "adapter_size": 32}},
    "ffn-adapter-scaled": {"depth": {**ADAPTED, **FFN, **SCALED}},
    "attn-ffn": {"depth": {**ADAPTED, **HALVES, "adapter_scaled_by_gate": True}},
    "attn-ffn-bottleneck": {"depth": {**BOTTLENECK, **HALVES, "gate_bias": True, "always_run_tokens": 3}},
    "every-scope": {"depth": {**BOTTLENECK, **EVERY_SCOPE, **SCALED, "adapter_size": 32}},
    "every-scope-min-layers": {"depth": {**LINEAR, **EVERY_SCOPE, "min_layers": 4}},
    "attn-sliding": {**SLIDING, "depth": {**LINEAR, **ATTN}},
    "moe-ffn": {**MIXED, "norm_topk_prob": True, "depth": {**ADAPTED, **FFN, **SCALED}},
    "moe-attn-ffn-shared": {
        **MIXED,
        "attention_bias": True,
        "qk_norm": "head",
        "scoring_func": "sigmoid",
        "shared_expert_intermediate_size": 40,
        "depth": {**LINEAR, **HALVES},
    },
}
EXITS: dict[str, dict[str, Any]] = {
    "exit": {"depth": {**EXIT, "gate_bias": True}},
    "exit-first": {"depth": {**EXIT, "gate_span": [6, 0, 0, 0, 0, 0], "gate_exit": [True] + [False] * 5}},
    "exits-bottleneck": {"depth": {**BOTTLENECK, **EXITS2, "always_run_tokens": 4}},
    "exit-around": {"depth": {**AROUND, "adapter_size": 32}},
    "exit-around-scaled": {"depth": {**BOTTLENECK, **AROUND, **SCALED, "adapter_size": 32}},
    "exit-around-min-layers": {"depth": {**AROUND, "adapter_size": 32, "min_layers": 2}},
    "exit-halves": {"depth": {**LINEAR, **EXIT_AMONG_HALVES, "adapter_size": 32}},
    "exit-sliding": {**SLIDING, "depth": EXIT},
    "exit-moe": {**MIXED, "depth": {**AROUND, "gate_bias": True}},
}
DROP = {"kv_policy": "drop"}
DROPS: dict[str, dict[str, Any]] = {
    "drop": {"depth": {**LINEAR, **DROP, "gate_bias": True}},
    "drop-adapter": {"depth": {**BOTTLENECK, **DROP, **SCALED, "gate_folded": True, "adapter_size": 32}},
    "drop-span2": {"depth": {**SPAN2, **DROP, "adapter_size": 32}},
    "drop-span3": {"depth": {**SPAN3, **DROP}},
    "drop-attn": {"depth": {**LINEAR, **ATTN, **DROP}},
    "drop-ffn": {"depth": {**ADAPTED, **FFN, **DROP}},
    "drop-attn-ffn": {"depth": {**BOTTLENECK, **HALVES, **DROP, "adapter_size": 32}},
    "drop-exit": {"depth": {**EXIT, **DROP}},
    "drop-exit-around": {"depth": {**AROUND, **DROP, "adapter_size": 32, "min_layers": 2}},
    "drop-exit-halves": {"depth": {**LINEAR, **EXIT_AMONG_HALVES, **DROP, "always_run_tokens": 2}},
    "drop-sliding": {**SLIDING, "depth": {**ADAPTED, **DROP}},
    "drop-sliding-all-exit": {
        "layer_types": ["sliding_attention"] * N_LAYER,
        "sliding_window": 5,
        "depth": {**AROUND, **DROP},
    },
    "drop-chunked": {**CHUNKED, "depth": {**SPAN2, **DROP, "gate_bias": True}},
    "drop-moe": {**MIXED, "depth": {**ADAPTED, **DROP}},
    "drop-llama4": {**EXPERTS["llama4"], "depth": {**SPAN2, **DROP, "gate_bias": True}},
    "drop-rope-layers": {"no_rope_layers": [1, 0, 1, 1, 0, 1], "depth": {**LINEAR, **DROP}},
}
GEMMAS: dict[str, dict[str, Any]] = {
    "gemma3": {**GEMMA3, "depth": {**ADAPTED, "gate_bias": True}},
    "gemma3-capped-span": {**GEMMA3, "final_logit_softcapping": 30.0, "depth": {**SPAN3, **SCALED, "adapter_size": 32}},
    "gemma3-every-scope": {**GEMMA3, "depth": {**BOTTLENECK, **EVERY_SCOPE, "adapter_size": 32, "min_layers": 2}},
    "gemma3-exit": {**GEMMA3, "depth": {**AROUND, "adapter_size": 32}},
    "gemma3-drop": {**GEMMA3, "depth": {**SPAN2, **DROP, "adapter_size": 32}},
    "gemma3-drop-halves": {**GEMMA3, "depth": {**LINEAR, **HALVES, **DROP}},
    "post-norms-moe": {**MIXED, "sandwich_norm": True, "depth": ADAPTED},
}

FAMILIES: dict[str, dict[str, Any]] = {
    **GATES,
    **EXPERTS,
    **SCOPES,
    **EXITS,
    **DROPS,
    **GEMMAS,
    **{name: {"depth": ADAPTED, **keys} for name, keys in ATTENTION.items()},
    **NO_GATES,
}
