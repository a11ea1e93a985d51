"""Families of mixtures: config.json said in the words of a `liquid` configuration, and llama.cpp's own keys of it.

Knows what llama.cpp's graphs of mixtures lack in common. Knows no family: those are in `arch/`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from . import fields
from .arch.liquid import Liquid
from .config import Config
from .fields import Field
from .registry import Reason, reasons
from .rope import rope_fields
from .rope_factors import rope_tensors

# what a `liquid` configuration may say and many families cannot
NEUTRAL: dict[str, Any] = {
    "moe_layers": [],
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "expert_weight_before_ffn": False,
    "shared_expert_intermediate_size": 0,
    "intermediate_size_mlp": 0,
    "qk_norm": "none",
    "clip_qkv": None,
    "attention_out_bias": None,
    "no_rope_layers": None,
    "layer_types": None,
    "sliding_window": None,
    "attention_chunk_size": None,
    "attn_temperature_tuning": False,
    "depth": None,
}


class Mixture(Liquid):
    """A `liquid` model in all but its name and keys; a family's class says `words_of` and `beyond_stock`."""

    dense_module = "mlp"
    defaults: ClassVar[dict[str, Any]] = {}  # of transformers' class, for keys that config.json leaves out
    stock_keys: ClassVar[tuple[str, ...]] = ("expert_feed_forward_length",)  # more of those that upstream writes
    stock_windows = False
    stock_factors = False  # whether it has tensors of frequencies

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        config = config.filled(self.defaults)
        words = {**NEUTRAL, **self.words_of(config)}
        for name, value in words.items():
            if not config.was_asked(name):
                config.only(name, value, why=f"transformers' {type(self).__name__} models know no such thing")
        config = config.extended(words)
        super().__init__(config, present, exact_gate=exact_gate)
        self.words = config.values
        self.has_head_dim = config.raw("head_dim") is not None
        self.stock_rope = self.rope.computable(reads_betas=False)

    def words_of(self, config: Config) -> dict[str, Any]:
        """What a `liquid` configuration says more than config.json, or otherwise."""
        raise NotImplementedError

    def liquid_words(self) -> dict[str, Any]:
        return self.words

    def beyond_stock(self) -> list[Reason]:
        """What llama.cpp's own graph of this architecture would get wrong."""
        refused = {
            "has no frequency factors, which this model's rope_type needs": (
                self.stock_rope.needs_factors and not self.stock_factors
            ),
            "has no bias on the attention's output": self.hparams.attention_bias,
        }
        windows = self.window.kind != "none" and not self.stock_windows
        return reasons({"has no attention windows": windows}, refused)

    def generated(self) -> dict[str, Any]:
        return rope_tensors(self.stock_rope, self.hparams.head_dim)

    def fields(self) -> list[Field]:
        more = {
            "expert_feed_forward_length": self.experts.size,
            "vocab_size": self.n_vocab,
            "rope.dimension_count": self.hparams.head_dim,
        }
        name = self.gguf_name
        found = self.hparams.common_fields(name, rope_fields(self.stock_rope, name))
        found += self.hparams.length_fields(name) if self.has_head_dim else []
        return [
            *found,
            fields.u32(f"{name}.feed_forward_length", self.dense_size or self.experts.size),
            fields.u32(f"{name}.expert_count", self.experts.count),
            fields.u32(f"{name}.expert_used_count", self.experts.used),
            *(fields.u32(f"{name}.{key}", more[key]) for key in self.stock_keys),
        ]


def one_window(config: Config, n_layer: int, size: int | None) -> dict[str, Any]:
    """The same sliding window in every layer; one that is no shorter than the context is none."""
    context = config.integer("max_position_embeddings", None, high=(1 << 31) - 1)
    if not size or (context and size >= context):
        return {"layer_types": ["full_attention"] * n_layer, "sliding_window": None}
    return {"layer_types": ["sliding_attention"] * n_layer, "sliding_window": size}


def expert_count(config: Config) -> int:
    """Under transformers' old name or its new one."""
    old, new = (config.integer(name, None, low=0, high=512) for name in ("num_experts", "num_local_experts"))
    if old is not None and new is not None:
        config.only("num_local_experts", old, why="num_experts says another number")
    return config.integer("num_experts", low=0) if old is None and new is None else (new if old is None else old)
