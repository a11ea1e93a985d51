"""OLMoE to GGUF architecture `olmoe`, or to `liquid` where heads or weights are not as it has them."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import MAX_LAYERS, Config
from ..experts import Layout
from ..mixture import Mixture, expert_count
from ..registry import Reason, arch, reasons


@arch("OlmoeForCausalLM")
class Olmoe(Mixture):
    gguf_name = "olmoe"
    stock_keys: ClassVar = ()
    expert_layout = Layout("mlp", "gate", input_first=False)
    defaults: ClassVar = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

    def words_of(self, config: Config) -> dict[str, Any]:
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

    def beyond_stock(self) -> list[Reason]:
        own = self.hparams
        wrong = {"leaves the experts' weights as they are (norm_topk_prob is true)": self.experts.norm}
        refused = {
            "has as many key heads as query heads": own.num_key_value_heads != own.num_attention_heads,
            "has heads of hidden_size / num_attention_heads": own.num_attention_heads * own.head_dim != own.hidden_size,
            "has an output matrix of its own (tie_word_embeddings is true)": own.tie_word_embeddings,
        }
        return super().beyond_stock() + reasons(wrong, refused)
