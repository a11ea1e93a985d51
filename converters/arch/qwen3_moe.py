"""Qwen3-MoE to GGUF architecture `qwen3moe`, or to `liquid` where layers, weights or windows are not as it has them."""

from __future__ import annotations

from typing import Any, ClassVar

from ..config import MAX_LAYERS, Config
from ..experts import Layout
from ..mixture import Mixture, expert_count, one_window
from ..registry import Reason, arch, reasons
from ..windows import MAX_WINDOW


@arch("Qwen3MoeForCausalLM")
class Qwen3Moe(Mixture):
    gguf_name = "qwen3moe"
    expert_layout = Layout("mlp", "gate", input_first=False)
    defaults: ClassVar = {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}

    def words_of(self, config: Config) -> dict[str, Any]:
        n_layer, count = config.integer("num_hidden_layers", high=MAX_LAYERS), expert_count(config)
        step, dense = config.integer("decoder_sparse_step", 1), config.items("mlp_only_layers", int, default=())
        return {
            "moe_layers": [i for i in range(n_layer) if count and (i + 1) % step == 0 and i not in dense],
            "num_local_experts": count,
            "num_experts_per_tok": config.integer("num_experts_per_tok"),
            "intermediate_size": config.integer("moe_intermediate_size"),
            "intermediate_size_mlp": config.integer("intermediate_size"),
            "norm_topk_prob": config.flag("norm_topk_prob", False),
            "qk_norm": "head",
            "rope_layout": "neox",
            "use_sliding_window": False,
            **self._window(config, n_layer),
        }

    @staticmethod
    def _window(config: Config, n_layer: int) -> dict[str, Any]:
        """One for all layers; max_window_layers is not part of this model."""
        config.raw("max_window_layers")
        config.raw("sliding_window")
        in_use = config.flag("use_sliding_window", False)
        return one_window(config, n_layer, config.integer("sliding_window", high=MAX_WINDOW) if in_use else None)

    def beyond_stock(self) -> list[Reason]:
        wrong = {"renormalises the experts' weights (norm_topk_prob is false)": not self.experts.norm}
        refused = {
            "has experts in every layer (decoder_sparse_step and mlp_only_layers say otherwise)": (
                len(self.experts.layers) < self.n_layer
            ),
        }
        return super().beyond_stock() + reasons(wrong, refused)
