"""What models of Gemma's kind have more: scales, norms behind each half, another activation, a base for windows.

Knows LiquidForCausalLM's words for them, the `liquid` keys and the norms' rows. Does not know the layers around them.
"""

from __future__ import annotations

from dataclasses import dataclass

from liquidcli.errors import IntegrityError

from . import fields
from .config import Config
from .fields import Field
from .rope import Rope
from .tensors import Row, row

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}  # config.json's word: GGUF's
POST_NORMS = (
    row("model.layers.{i}.post_self_attn_layernorm.weight", "blk.{i}.post_attention_norm.weight", "d"),
    row("model.layers.{i}.post_mlp_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "d"),
)


@dataclass(frozen=True)
class Scales:
    """None: as the architecture has it where nothing is said."""

    embedding: float | None
    attention: float | None
    window_base: float | None
    cap: float | None
    activation: str
    post_norms: bool

    @classmethod
    def read(cls, config: Config, rope: Rope, *, has_experts: bool) -> Scales:
        activation = ACTIVATIONS[config.choice("hidden_act", ACTIVATIONS, "silu")]
        if has_experts and activation != "silu":
            raise IntegrityError("config.json: hidden_act: experts use silu")
        window_base = config.positive("rope_local_base_freq", None)
        if window_base and rope.kind not in ("default", "linear"):
            raise IntegrityError(f"config.json: rope_local_base_freq stands beside a rope_type of {rope.kind}")
        return cls(
            config.positive("embedding_multiplier", None),
            config.positive("attention_multiplier", None),
            window_base,
            config.positive("final_logit_softcapping", None),
            activation,
            config.flag("sandwich_norm", False),
        )

    def rows(self) -> tuple[Row, ...]:
        return POST_NORMS if self.post_norms else ()

    def fields(self) -> list[Field]:
        numbers = {
            "embedding_scale": None if self.embedding == 1 else self.embedding,
            "attention.scale": self.attention,
            "rope.freq_base_swa": self.window_base,
            "final_logit_softcapping": self.cap,
        }
        found = [fields.f32(f"liquid.{name}", value) for name, value in numbers.items() if value is not None]
        is_silu = self.activation == "silu"
        return found + ([] if is_silu else [fields.string("liquid.feed_forward.activation", self.activation)])
