"""Mixtral to GGUF architecture `llama`, or to `liquid` where there is an attention window.

Knows both names of its experts: w1, w3, w2 under `block_sparse_moe`, and what newer transformers keep under `mlp`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from ..config import MAX_LAYERS, Config
from ..experts import Layout
from ..mixture import Mixture, one_window
from ..registry import arch
from ..windows import MAX_WINDOW

PUBLISHED = Layout("block_sparse_moe", "gate", "w1", "w3", "w2", input_first=False)
RENAMED = Layout("mlp", "gate", input_first=False)


@arch("MixtralForCausalLM")
class Mixtral(Mixture):
    gguf_name = "llama"
    stock_keys: ClassVar = ("vocab_size", "rope.dimension_count")
    stock_factors = True
    defaults: ClassVar = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
                          "rope_theta": 1e6}  # fmt: skip

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        renamed = any(".mlp.gate." in name for name in present)
        self.expert_layout = RENAMED if renamed else PUBLISHED
        super().__init__(config, present, exact_gate=exact_gate)

    def words_of(self, config: Config) -> dict[str, Any]:
        n_layer = config.integer("num_hidden_layers", high=MAX_LAYERS)
        return {
            "moe_layers": list(range(n_layer)),
            "num_local_experts": config.integer("num_local_experts"),
            "num_experts_per_tok": config.integer("num_experts_per_tok"),
            "norm_topk_prob": True,
            "attention_bias": False,
            "rope_layout": "norm",
            **one_window(config, n_layer, config.integer("sliding_window", None, high=MAX_WINDOW)),
        }
