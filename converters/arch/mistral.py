"""Mistral to GGUF architecture `llama`, or `liquid` if its window is narrower than its context: `llama` has none."""

from __future__ import annotations

from typing import ClassVar

from liquidcli.errors import LiquidError

from ..config import Config
from ..registry import arch
from ..windows import MAX_WINDOW, Window
from .llama import Llama


@arch("MistralForCausalLM")
class Mistral(Llama):
    defaults: ClassVar = {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}

    def _biases(self, config: Config) -> tuple[bool, bool, bool]:
        return self.hparams.attention_bias, self.hparams.attention_bias, False

    def _window(self, config: Config) -> Window:
        size = config.integer("sliding_window", 0, high=MAX_WINDOW)
        types = set(config.items("layer_types", str, self.n_layer, default=()))
        if types - {"sliding_attention" if size else "full_attention"}:
            raise LiquidError(f"config.json: layer_types are {sorted(types)}, but all of Mistral's layers are alike")
        if not 0 < size < self.hparams.max_position_embeddings:
            return Window()
        return Window("sliding", size, (True,) * self.n_layer)
