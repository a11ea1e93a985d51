"""Router-Tuning checkpoints, small: a plain model, a vector a layer, and the method once more in numpy.

`Routed` follows the published code: attention is computed for all tokens, the router reads input_layernorm, and
w >= threshold runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from liquidcli.reference import LiquidForCausalLM
from tests.flexidepth import Outcome, Published
from tests.tiny import make_model, save_checkpoint

N_LAYER = 6
GATED = (1, 3, 4, 5)
BASES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_layout": "norm"},
    "Mistral": {"rope_layout": "norm", "layer_types": ["sliding_attention"] * N_LAYER, "sliding_window": 9},
    "Qwen2": {"attention_bias": True, "attention_out_bias": False},
    "Qwen3": {"qk_norm": "head"},
}
SCOPES = {"attn_token": "attn", "mlp_token": "ffn", "block_token": "layer", "token": "attn"}
SETTINGS = {"threshold": 0.5, "mod_capacity": 0.5, "gradient_scale": 0.01}
EXTRA: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": False, "mlp_bias": False, "rope_scaling": None},
    "Mistral": {"sliding_window": 9},
    "Qwen2": {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28, "use_mrope": False},
    "Qwen3": {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28, "attention_bias": False},
}
KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def routed_model(base: str, granularity: str = "attn_token") -> LiquidForCausalLM:
    scopes = [SCOPES[granularity] if layer in GATED else "layer" for layer in range(N_LAYER)]
    spans = [int(layer in GATED) for layer in range(N_LAYER)]
    return make_model({**BASES[base], "depth": {"gate_kind": "linear", "gate_span": spans, "gate_scope": scopes}})


def write_routed(
    base: str, folder: Path, granularity: str = "attn_token", *, name: str = "MoD", **changes: Any
) -> Path:
    """The folder; `name`: MoD, MindSkip, or empty for the plain architecture's name. None removes a key."""
    save_checkpoint(routed_model(base, granularity), folder)
    tensors = load_file(folder / "model.safetensors")
    for old in [old for old in tensors if ".depth_gate" in old]:
        layer = old.split(".")[2]
        tensors[f"model.layers.{layer}.router.weight"] = tensors.pop(old)
    tensors = {old.replace(".feed_forward.", ".mlp."): tensor for old, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    words = json.loads((folder / "config.json").read_text())
    config = {
        "architectures": [f"{base}{name}ForCausalLM"], "model_type": f"{base.lower()}_mod", "hidden_act": "silu",
        "intermediate_size": words["intermediate_size_mlp"], "granularity": granularity,
        "is_mod": [layer in GATED for layer in range(N_LAYER)], **SETTINGS, **EXTRA[base],
        **{key: words[key] for key in KEPT}, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


class Routed(Published):
    """Bases without biases and windows."""

    def forward(self, tokens: np.ndarray, force: str = "") -> Outcome:  # [B, T]
        h = self.tensors["model.embed_tokens.weight"][tokens]
        told = []
        for layer, gated in enumerate(self.config["is_mod"]):
            n, entered = self.norm(h, self.weight(layer, "input_layernorm")), h
            attended = self.attention(layer, n)
            w = 1 / (1 + np.exp(-n @ self.weight(layer, "router")[0])) if gated else np.ones(tokens.shape)
            run = w - self.config["threshold"] >= 0
            switch = run[..., None] if gated else np.ones((1, 1, 1), bool)
            h = h + attended * (switch if "attn" in self.config["granularity"] else 1)
            h = h + self.mlp(layer, h)
            h = np.where(switch, h, entered) if "block" in self.config["granularity"] else h
            told += [(w, run)] * gated
        h = self.norm(h, self.tensors["model.norm.weight"])
        w, run = (np.stack(one, -1) for one in zip(*told, strict=True))
        return Outcome(h @ self.tensors["lm_head.weight"].T, w, run)
