"""`liquid` checkpoints: depth gates, mixtures of experts and every attention key, to GGUF architecture `liquid`.

Knows LiquidForCausalLM's configuration and tensor names. Gates are in `..depth`, the Llama-shaped rest in `.llama`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from gguf import ExpertGatingFuncType
from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError

from .. import fields
from ..config import Config
from ..depth import Names, depth_fields, depth_rows, read_depth
from ..fields import Field
from ..registry import arch
from ..rope import read_rope, rope_fields
from ..tensors import Row, Target, bind, row
from ..transforms import FIRST_HALF, SAME, SECOND_HALF, SWAP, Transform, interleaved
from .llama import (
    HEAD,
    MODEL,
    NORMS,
    OUT_BIAS,
    TIED_HEAD,
    Hparams,
    attention,
    gated_mlp,
    qkv_biases,
    refuse_foreign_maths,
    rope_tensor,
)

GATING = {"softmax": ExpertGatingFuncType.SOFTMAX, "sigmoid": ExpertGatingFuncType.SIGMOID}
WINDOWS = {"sliding_attention": "sliding", "chunked_attention": "chunked"}
SOURCE = "model.layers.{i}.feed_forward"
MOE = (
    row(f"{SOURCE}.router.weight", "blk.{i}.ffn_gate_inp.weight", "e d", role="router"),
    Row(
        ((f"{SOURCE}.experts.gate_up_proj", "e d 2x"),),
        (
            Target("blk.{i}.ffn_gate_exps.weight", "e x d", FIRST_HALF, "ffn_gate"),
            Target("blk.{i}.ffn_up_exps.weight", "e x d", SECOND_HALF, "ffn_up"),
        ),
    ),
    row(f"{SOURCE}.experts.down_proj", "blk.{i}.ffn_down_exps.weight", "e x d", SWAP, to="e d x", role="ffn_down"),
)
SHARED = (
    row(f"{SOURCE}.shared_expert.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight", "s d", role="ffn_gate"),
    row(f"{SOURCE}.shared_expert.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", "s d", role="ffn_up"),
    row(f"{SOURCE}.shared_expert.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", "d s", role="ffn_down"),
)


def qk_norms(shape_q: str, shape_k: str, q: Transform, k: Transform) -> tuple[Row, ...]:
    return (
        row("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", shape_q, q),
        row("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", shape_k, k),
    )


@dataclass(frozen=True)
class Window:
    """Which layers see how far back."""

    kind: str = "none"
    size: int = 0
    layers: tuple[bool, ...] = ()

    @classmethod
    def read(cls, config: Config, n_layer: int) -> Window:
        types = config.items("layer_types", str, n_layer, default=None) or ()
        sizes = {
            "sliding": config.integer("sliding_window", 0, low=0, high=(1 << 31) - 1),
            "chunked": config.integer("attention_chunk_size", 0, low=0, high=(1 << 31) - 1),
        }
        kinds = set(types) - {"full_attention"}
        if kinds - set(WINDOWS) or len(kinds) > 1:
            raise IntegrityError(f"config.json: layer_types has {sorted(kinds)}, expected one of {', '.join(WINDOWS)}")
        if not kinds:
            return cls()
        kind = WINDOWS[kinds.pop()]
        if not sizes[kind]:
            raise IntegrityError(f"config.json: layer_types has {kind} windows, but their size is missing")
        return cls(kind, sizes[kind], tuple(one != "full_attention" for one in types))

    def fields(self) -> list[Field]:
        found = [fields.string("liquid.attention.window_type", self.kind)]
        if self.size:
            found.append(fields.u32("liquid.attention.sliding_window", self.size))
            found.append(fields.array("liquid.attention.sliding_window_pattern", self.layers, Type.BOOL))
        return found


@dataclass(frozen=True)
class Experts:
    """The mixture layers; `layers` is empty for a dense model."""

    layers: frozenset[int]
    n_layer: int
    count: int
    used: int
    size: int
    shared_size: int
    scoring: str
    norm: bool
    scale: float
    before_ffn: bool

    @classmethod
    def read(cls, config: Config, n_layer: int) -> Experts:
        found = cls(
            layers=frozenset(config.items("moe_layers", int, default=())),
            n_layer=n_layer,
            count=config.integer("num_local_experts", 0, low=0, high=512),  # ref: llama.cpp, LLAMA_MAX_EXPERTS
            used=config.integer("num_experts_per_tok", 0, low=0, high=512),
            size=config.integer("intermediate_size", 0, low=0),
            shared_size=config.integer("shared_expert_intermediate_size", 0, low=0),
            scoring=config.choice("scoring_func", GATING, "softmax"),
            norm=config.flag("norm_topk_prob", False),
            scale=config.positive("routed_scaling_factor", 1.0),
            before_ffn=config.flag("expert_weight_before_ffn", False),
        )
        found.check()
        return found

    def check(self) -> None:
        if self.layers and not 0 < self.used <= self.count:
            raise IntegrityError(
                f"config.json: {self.used} experts per token of {self.count}, expected at least one and at most all"
            )
        if self.layers and (max(self.layers) >= self.n_layer or not self.size):
            raise IntegrityError("config.json: moe_layers names a layer too many, or intermediate_size is missing")

    def fields(self) -> list[Field]:
        if not self.layers:
            return []
        found = [
            fields.array("liquid.moe_layers", [i in self.layers for i in range(self.n_layer)], Type.BOOL),
            fields.u32("liquid.expert_count", self.count),
            fields.u32("liquid.expert_used_count", self.used),
            fields.u32("liquid.expert_feed_forward_length", self.size),
            fields.u32("liquid.expert_gating_func", GATING[self.scoring]),
            fields.boolean("liquid.expert_weights_norm", self.norm),
            fields.f32("liquid.expert_weights_scale", self.scale),
            fields.boolean("liquid.expert_weight_before_ffn", self.before_ffn),
        ]
        if self.shared_size:
            found.append(fields.u32("liquid.expert_shared_feed_forward_length", self.shared_size))
        return found


@arch("LiquidForCausalLM")
class Liquid:
    gguf_name = "liquid"
    names = Names()
    dense_module = "feed_forward"

    def __init__(self, config: Config, present: Collection[str], *, fold_gates: bool = True) -> None:
        refuse_foreign_maths(config)
        config.only("use_qk_norm", False, why="qk_norm says which one")
        config.only("mlp_bias", False, why="feed-forward parts have no biases")
        self.present, self.fold_gates = present, fold_gates
        self.hparams = Hparams.read(config, rms_norm_eps=1e-5)
        self.n_layer = self.hparams.num_hidden_layers
        self.out_bias = config.flag("attention_out_bias", self.hparams.attention_bias)
        self.rope = read_rope(config)
        self.rope_layout = config.choice("rope_layout", ("norm", "neox", "none"), "neox")
        self.rope_layers = config.items("no_rope_layers", int, self.n_layer, default=None)
        self.qk_norm = config.choice("qk_norm", ("none", "head", "full", "l2"), "none")
        self.clip_qkv = config.positive("clip_qkv", None)
        self.window = Window.read(config, self.n_layer)
        self.experts = Experts.read(config, self.n_layer)
        self.dense_size = self._dense_size(config)
        self.temperature = self._temperature(config)
        self.depth = read_depth(config, self.n_layer)
        self.n_vocab = self.hparams.vocab_size
        self.dims = self._dims()

    def _dense_size(self, config: Config) -> int:
        size = config.integer("intermediate_size_mlp", 0, low=0)
        size = size or (0 if self.experts.layers else self.experts.size)
        if not size and len(self.experts.layers) < self.n_layer:
            raise IntegrityError("config.json has no intermediate_size_mlp, which its dense layers need")
        return size

    def _temperature(self, config: Config) -> tuple[int, float] | None:
        length, scale = config.integer("floor_scale", 8192), config.positive("attn_scale", 0.1)
        return (length, scale) if config.flag("attn_temperature_tuning", False) else None

    def _dims(self) -> dict[str, int]:
        experts = {"e": self.experts.count, "x": self.experts.size, "2x": 2 * self.experts.size}
        rest = {"f": self.dense_size, "s": self.experts.shared_size, **(self.depth.dims() if self.depth else {})}
        return {**self.hparams.dims(), **experts, **rest}

    def rows(self) -> Iterator[Row]:
        yield from bind(MODEL + (TIED_HEAD if self.hparams.tie_word_embeddings else HEAD))
        shared = self._attention_rows()
        for i in range(self.n_layer):
            yield from bind(shared + self._feed_forward_rows(i), i)
            if self.depth:
                yield from bind(depth_rows(self.depth, i, self.names, self.present, fold=self.fold_gates), i)

    def _attention_rows(self) -> tuple[Row, ...]:
        heads, kv_heads = self.hparams.num_attention_heads, self.hparams.num_key_value_heads
        pairs = self.rope_layout == "norm"
        q, k, one = (interleaved(n) if pairs else SAME for n in (heads, kv_heads, 1))
        found = NORMS + attention(q, k)
        if self.hparams.attention_bias:
            found += qkv_biases(q, k)
        if self.out_bias:
            found += OUT_BIAS
        if self.qk_norm == "head":
            found += qk_norms("h", "h", one, one)
        elif self.qk_norm == "full":
            found += qk_norms("q", "k", q, k)
        return found

    def _feed_forward_rows(self, layer: int) -> tuple[Row, ...]:
        if layer not in self.experts.layers:
            return gated_mlp(self.dense_module)
        return MOE + (SHARED if self.experts.shared_size else ())

    def generated(self) -> dict[str, Any]:
        return rope_tensor(self.rope, self.hparams.head_dim)

    def fields(self) -> list[Field]:
        found = self.hparams.fields("liquid", rope_fields(self.rope, "liquid"))
        found.append(fields.u32("liquid.feed_forward_length", self.dense_size or self.experts.size))
        found.append(fields.string("liquid.rope.type", self.rope_layout))
        if self.rope_layers is not None:
            found.append(fields.array("liquid.rope.layers", [one != 0 for one in self.rope_layers], Type.BOOL))
        found.append(fields.string("liquid.attention.qk_norm", self.qk_norm))
        found += self.window.fields()
        if self.temperature is not None:
            found.append(fields.u32("liquid.attention.temperature_length", self.temperature[0]))
            found.append(fields.f32("liquid.attention.temperature_scale", self.temperature[1]))
        if self.clip_qkv is not None:
            found.append(fields.f32("liquid.attention.clamp_kqv", self.clip_qkv))
        return found + self.experts.fields() + (depth_fields(self.depth) if self.depth else [])

    def warnings(self) -> list[str]:
        return []
