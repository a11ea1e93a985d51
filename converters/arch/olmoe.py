"""OLMoE to GGUF architecture `olmoe`, or to `liquid` where heads or weights are not as it has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from ..config import MAX_LAYERS, Config
from ..experts import Layout
from ..mixture import StockOrLiquid, expert_count
from ..registry import arch


@arch("OlmoeForCausalLM")
class Olmoe(StockOrLiquid):
    stock_name = "olmoe"
    stock_keys: ClassVar = ()
    expert_layout = Layout("mlp", "gate", input_first=False)
    defaults: ClassVar = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

    def words(self, config: Config) -> dict[str, Any]:
        config.only("clip_qkv", why="this model clamps q and k behind their norms, llama.cpp's graphs do it before")
        n_layer = config.integer("num_hidden_layers", high=MAX_LAYERS)
        return {
            "moe_layers": list(range(n_layer)),
            "num_local_experts": expert_count(config),
            "num_experts_per_tok": config.integer("num_experts_per_tok"),
            "norm_topk_prob": config.flag("norm_topk_prob", False),
            "qk_norm": "full",
            "rope_layout": "neox",
            "layer_types": ["full_attention"] * n_layer,
        }

    def differences(self) -> Iterator[str]:
        heads, size = self.hparams.num_attention_heads, self.hparams.head_dim
        if (self.hparams.num_key_value_heads, heads * size) != (heads, self.hparams.hidden_size):
            yield "has as many key heads as query heads, and no wider ones"
        if self.hparams.tie_word_embeddings:
            yield "has an output matrix of its own (tie_word_embeddings is true)"
        if self.experts.norm:
            yield "leaves the experts' weights as they are (norm_topk_prob is true)"
