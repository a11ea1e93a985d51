"""Qwen2 and Qwen2.5 to GGUF architecture `qwen2`, or `liquid` for what that cannot: windows, odd heads, factors.

Biases on q, k and v always, never on the output; windows from layer `max_window_layers` on if `use_sliding_window`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from liquidcli.errors import LiquidError

from .. import fields
from ..config import Config
from ..fields import Field
from ..registry import Reason, arch
from ..rope import rope_fields
from ..windows import MAX_WINDOW, Window
from .llama import Llama

KINDS = {"full_attention", "sliding_attention"}


@arch("Qwen2ForCausalLM")
class Qwen2(Llama):
    gguf_name = "qwen2"
    rope_layout = "neox"
    reads_factors = False
    defaults: ClassVar[dict[str, Any]] = {
        "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
    }  # fmt: skip

    def __init__(self, config: Config, present: Collection[str] = (), *, exact_gate: bool = False) -> None:
        super().__init__(config, present)
        self.writes_lengths = config.raw("head_dim") is not None

    def _biases(self, config: Config) -> tuple[bool, bool, bool]:
        return True, False, False

    def _window(self, config: Config) -> Window:
        size = config.integer("sliding_window", 0, low=0, high=MAX_WINDOW)
        start = config.integer("max_window_layers", self.n_layer, low=0)
        used = config.flag("use_sliding_window", False) and size > 0
        types = config.items("layer_types", str, self.n_layer, default=None)
        if types is None:
            layers = tuple(used and layer >= start for layer in range(self.n_layer))
        elif set(types) - KINDS or ("sliding_attention" in types and not used):
            raise LiquidError(f"config.json: layer_types {sorted(set(types))} do not fit use_sliding_window {used}")
        else:
            layers = tuple(one == "sliding_attention" for one in types)
        narrow = any(layers) and size < self.hparams.max_position_embeddings
        return Window("sliding", size, layers) if narrow else Window()

    def fields(self) -> list[Field]:
        name = self.gguf_name
        found = self.hparams.common_fields(name, rope_fields(self.rope, name))
        found += self.hparams.length_fields(name) if self.writes_lengths else []
        return [*found, fields.u32(f"{name}.feed_forward_length", self.intermediate_size)]

    def beyond_stock(self) -> list[Reason]:
        found = super().beyond_stock()
        if self.hparams.num_attention_heads * self.hparams.head_dim != self.hparams.hidden_size:
            found.append(Reason("expects heads of hidden_size / num_attention_heads", loads=False))
        return found
