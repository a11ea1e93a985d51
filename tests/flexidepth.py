"""FlexiDepth checkpoints as they are published, small: their names, shapes and keys; and the method once more in numpy.

`forward` follows the paper and its code, knows nothing of this project's reference, and computes in float64.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from liquidcli.reference import LiquidForCausalLM
from tests.tiny import make_model, save_checkpoint

N_LAYER = 8
ROUTED = (4, 5, 6, 7)
REDUCTION = 16
DEPTH: dict[str, Any] = {
    "gate_kind": "bottleneck", "gate_span": [int(i in ROUTED) for i in range(N_LAYER)], "ffn_scaled_by_gate": True,
    "adapter_scaled_by_gate": True, "gate_rank": 128 // REDUCTION, "adapter_size": 512 // REDUCTION,
}  # fmt: skip
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size_mlp": 512, "num_hidden_layers": N_LAYER, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {
    "ddllama": {**SHAPE, "rope_layout": "norm", "rope_theta": 500000.0, "depth": DEPTH},
    "ddqwen3": {
        **SHAPE, "head_dim": 24, "qk_norm": "head", "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "depth": {**DEPTH, "gate_bias": True},
    },
}  # fmt: skip
ROUTING = {"routing_layers": list(ROUTED), "router_reduction_factor": REDUCTION}
CONFIGS: dict[str, dict[str, Any]] = {
    "ddllama": {
        "architectures": ["DDLlamaForCausalLM"], "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_ddllama.DDLlamaForCausalLM"}, "rope_scaling": None, **ROUTING,
        "proj_reduction_factor": REDUCTION,
    },
    "ddqwen3": {
        "architectures": ["DDQwen3ForCausalLM"], "hidden_act": "silu", "attention_bias": False,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": 36, "router_gate_mode": "ste_hard",
        "router_head_bias_init": 2.0, "router_force_mode": None, **ROUTING,
    },
}  # fmt: skip
NAMES = {
    "depth_gate.enc": "router.router_enc", "depth_gate.norm": "router.router_norm", "feed_forward.": "mlp.",
    "depth_gate.dec": "router.router_dec", "depth_gate.head": "router.router_head",
    "depth_adapter.gate_proj": "router_proj.gate_proj", "depth_adapter.up_proj": "router_proj.down_proj",
    "depth_adapter.down_proj": "router_proj.up_proj",
}  # fmt: skip
KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip


def published_model(kind: str) -> LiquidForCausalLM:
    return make_model(KEYS[kind])


def write_published(kind: str, model: LiquidForCausalLM, folder: Path, **changes: Any) -> Path:
    """The model as a `ddllama` or `ddqwen3` folder; `changes` to config.json."""
    save_checkpoint(model, folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[next((name.replace(a, b) for a, b in NAMES.items() if a in name), name)] = tensor
    save_file(tensors, folder / "model.safetensors")
    words = json.loads((folder / "config.json").read_text())
    config = {**CONFIGS[kind], "model_type": kind, "intermediate_size": words["intermediate_size_mlp"]}
    config |= {name: words[name] for name in KEPT} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass
class Outcome:
    logits: np.ndarray  # [B, T, n_vocab]
    w: np.ndarray  # [B, T, n_routed]
    run: np.ndarray  # bool [B, T, n_routed]


class Published:
    """The folder's model. `force` is what the published code calls router_force_mode, and `base`: w = 1 throughout."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        found = load_file(folder / "model.safetensors")
        self.tensors = {name: tensor.double().numpy() for name, tensor in found.items()}

    def weight(self, layer: int, name: str) -> np.ndarray:
        return self.tensors[f"model.layers.{layer}.{name}.weight"]

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def forward(self, tokens: np.ndarray, force: str = "") -> Outcome:  # [B, T]
        h = self.tensors["model.embed_tokens.weight"][tokens]
        told = []
        for layer in range(self.config["num_hidden_layers"]):
            n = self.norm(h, self.weight(layer, "input_layernorm"))
            attended = h + self.attention(layer, n)  # K and V of every token, whatever it does
            if layer not in self.config["routing_layers"]:
                h = attended + self.mlp(layer, attended)
                continue
            w = self.route(layer, n)
            w = np.ones_like(w) if force == "base" else w
            run = np.full(w.shape, force != "project") if force else w > 0.5
            told.append((w, run))
            runs, skips = attended + w[..., None] * self.mlp(layer, attended), self.adapted(layer, h, w)
            h = np.where(run[..., None], runs, skips)
        h = self.norm(h, self.tensors["model.norm.weight"])
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        w, run = (np.stack(one, -1) for one in zip(*told, strict=True))
        return Outcome(h @ head.T, w, run)

    def route(self, layer: int, n: np.ndarray) -> np.ndarray:
        inner = self.norm(n @ self.weight(layer, "router.router_enc").T, self.weight(layer, "router.router_norm"))
        z = np.tanh(inner) @ self.weight(layer, "router.router_dec").T @ self.weight(layer, "router.router_head")[0]
        bias = self.tensors.get(f"model.layers.{layer}.router.router_head.bias", np.zeros(1))
        return 1 / (1 + np.exp(-(z + bias[0])))

    def mlp(self, layer: int, h: np.ndarray) -> np.ndarray:
        x = self.norm(h, self.weight(layer, "post_attention_layernorm"))
        gate, up = (x @ self.weight(layer, f"mlp.{part}_proj").T for part in ("gate", "up"))
        return (gate / (1 + np.exp(-gate)) * up) @ self.weight(layer, "mlp.down_proj").T

    def adapted(self, layer: int, h: np.ndarray, w: np.ndarray) -> np.ndarray:
        x = self.norm(h, self.weight(layer, "post_attention_layernorm"))
        gate, multiplicand = (x @ self.weight(layer, f"router_proj.{part}_proj").T for part in ("gate", "down"))
        out = (gate / (1 + np.exp(-gate)) * multiplicand) @ self.weight(layer, "router_proj.up_proj").T
        return h + (1 - w)[..., None] * out

    def attention(self, layer: int, n: np.ndarray) -> np.ndarray:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (self.heads(layer, n, *one) for one in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
        k, v = (np.repeat(one, heads // kv_heads, axis=2) for one in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
        n_tokens = n.shape[1]
        scores = np.where(np.tri(n_tokens, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        out = np.einsum("bhqk,bkhd->bqhd", shares, v)
        return out.reshape(*n.shape[:2], -1) @ self.weight(layer, "self_attn.o_proj").T

    def heads(self, layer: int, n: np.ndarray, part: str, count: int) -> np.ndarray:  # [B, T, count, head_dim]
        x = (n @ self.weight(layer, f"self_attn.{part}_proj").T).reshape(*n.shape[:2], count, -1)
        if part == "v":
            return x
        if f"model.layers.{layer}.self_attn.{part}_norm.weight" in self.tensors:
            x = self.norm(x, self.weight(layer, f"self_attn.{part}_norm"))
        half = x.shape[-1] // 2
        angle = np.arange(n.shape[1])[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = (f(np.concatenate([angle, angle], -1))[:, None] for f in (np.cos, np.sin))
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin
