"""The plain models under gated checkpoints, in the words of a `liquid` configuration.

Knows what transformers' Llama, Mistral, Qwen2 and Qwen3 leave unsaid: layout of q and k, biases, q/k norms, windows.
Knows no gates.
"""

from __future__ import annotations

from typing import Any

from .config import Config

BASES: dict[str, dict[str, Any]] = {
    "llama": {"rope_layout": "norm"},
    "mistral": {"rope_layout": "norm", "attention_bias": False},
    "qwen2": {"rope_layout": "neox", "attention_bias": True, "attention_out_bias": False},
    "qwen3": {"rope_layout": "neox", "qk_norm": "head"},
}
HEAD_DIM = {"qwen3": 128}
UNUSED_WINDOWS = ("sliding_window", "max_window_layers")  # of models whose use_sliding_window is false


def base_words(config: Config, base: str) -> dict[str, Any]:
    """What a `liquid` configuration says more than config.json of this base."""
    words = {**BASES[base], "rms_norm_eps": config.positive("rms_norm_eps", 1e-6)}
    if base in HEAD_DIM:
        words["head_dim"] = config.integer("head_dim", HEAD_DIM[base])
    if base == "mistral":
        return words | _windows(config)
    for name in UNUSED_WINDOWS:
        config.raw(name)
    return {**words, "sliding_window": None}


def _windows(config: Config) -> dict[str, Any]:
    """Mistral's one window for all layers; layer_types, where given, says it too."""
    size, types = config.integer("sliding_window", None, high=(1 << 31) - 1), config.raw("layer_types")
    if types is not None:
        return {}
    return {"layer_types": ["sliding_attention"] * config.integer("num_hidden_layers", high=512)} if size else {}
