"""What llama.cpp derives from a stock architecture's name, as the keys by which a `liquid` file says the same.

Knows the architectures that packs are made for. Knows nothing of packs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..gguf_file import GGUFFile

WORDS: dict[str, dict[str, str]] = {
    "llama": {"rope.type": "norm", "attention.qk_norm": "none", "attention.window_type": "none"},
    "qwen2": {"rope.type": "neox", "attention.qk_norm": "none", "attention.window_type": "none"},
    "qwen3": {"rope.type": "neox", "attention.qk_norm": "head", "attention.window_type": "none"},
    "qwen3moe": {"rope.type": "neox", "attention.qk_norm": "head", "attention.window_type": "none"},
    "gemma3": {"rope.type": "neox", "attention.qk_norm": "head", "feed_forward.activation": "gelu"},
    "liquid": {},  # without gates: it says all of it itself
}
_SOFTMAX = 1  # llama.cpp's number for expert_gating_func
# ref: llama.cpp's gemma3: every sixth layer sees everything, the model of 62 layers has a scale of its own
_GEMMA_STEP, _GEMMA_WINDOW_BASE, _GEMMA_27B_LAYERS = 6, 10000.0, 62


def derived_keys(f: GGUFFile) -> dict[str, Any]:
    """Without prefixes; str, bool, int, float or list[bool]. KeyError for an architecture that is not in WORDS."""
    get: Callable[..., Any] = lambda name, default=None: f.metadata.get(f"{f.architecture}.{name}", default)  # noqa: E731
    keys: dict[str, Any] = dict(WORDS[f.architecture])
    if get("expert_count") and f.architecture != "liquid":
        keys |= {"expert_gating_func": _SOFTMAX, "expert_weights_norm": True}
    found = {key: get(key, value) for key, value in keys.items()}
    return found | (_gemma(f.block_count, get) if f.architecture == "gemma3" else {})


def _gemma(n_layer: int, get: Callable[..., Any]) -> dict[str, Any]:
    n_embd, window = get("embedding_length"), get("attention.sliding_window", 0)
    even = n_embd // get("attention.head_count")
    n_embd_head = even if n_layer == _GEMMA_27B_LAYERS else get("attention.key_length", even)
    keys: dict[str, Any] = {
        "embedding_scale": float(np.sqrt(np.float32(n_embd))),
        "attention.scale": float(1 / np.sqrt(np.float32(n_embd_head))),
        "attention.window_type": "sliding" if window else "none",
    }
    if window:
        pattern = get("attention.sliding_window_pattern", _GEMMA_STEP)
        if not isinstance(pattern, list):
            pattern = [not pattern or (layer + 1) % pattern != 0 for layer in range(n_layer)]
        keys["attention.sliding_window_pattern"] = pattern
        keys["rope.freq_base_swa"] = get("rope.freq_base_swa", _GEMMA_WINDOW_BASE)
    return keys
