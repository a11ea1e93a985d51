"""`liquid` checkpoints: depth gates, mixtures of experts and every attention key, to GGUF architecture `liquid`.

Knows LiquidForCausalLM's configuration and tensor names. Gates are in `..depth`, experts in `..experts`, windows in
`..windows`, what Gemma has more in `..scales`, the Llama-shaped rest in `.llama`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError

from .. import fields
from ..config import Config
from ..depth import Names, depth_fields, depth_rows, read_depth
from ..experts import Experts, Layout, expert_rows
from ..fields import Field
from ..registry import arch
from ..rope import read_rope, rope_fields, rope_warnings
from ..rope_factors import rope_tensors
from ..scales import Scales
from ..tensors import Dims, Row, bind
from ..transforms import SAME, interleaved
from ..windows import Window
from .llama import (
    HEAD,
    MODEL,
    NORMS,
    OUT_BIAS,
    TIED_HEAD,
    Hparams,
    attention,
    gated_mlp,
    qk_norms,
    qkv_biases,
    refuse_unreadable,
)


@arch("LiquidForCausalLM")
class Liquid:
    gguf_name = "liquid"
    names = Names()
    dense_module = "feed_forward"
    expert_layout = Layout()
    half_split = True  # the checkpoint's q and k: feature i of a head rotates with feature i + head_dim/2, not i + 1

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        refuse_unreadable(config)
        config.only("use_sliding_window", False, why="windows are named by layer_types")
        config.only("use_qk_norm", False, why="qk_norm says which one")
        config.only("mlp_bias", False, why="feed-forward parts have no biases")
        self.present, self.exact_gate = present, exact_gate
        self.hparams = Hparams.read(config, rms_norm_eps=1e-5)
        self.n_layer = self.hparams.num_hidden_layers
        self.out_bias = config.flag("attention_out_bias", self.hparams.attention_bias)
        self.rope = read_rope(config).computable(reads_betas=True)
        self.rope_layout = config.choice("rope_layout", ("norm", "neox", "none"), "neox")
        self.rope_layers = config.items("no_rope_layers", int, self.n_layer, default=None)
        self.qk_norm = config.choice("qk_norm", ("none", "head", "full", "l2"), "none")
        self.clip_qkv = config.positive("clip_qkv", None)
        self.window = Window.read(config, self.n_layer)
        self.experts = Experts.read(config, self.n_layer)
        self.scales = Scales.read(config, self.rope, has_experts=bool(self.experts.layers))
        self.dense_size = self._dense_size(config)
        self.temperature = self._temperature(config)
        self.depth = read_depth(config, self.n_layer)
        self.n_vocab = self.hparams.vocab_size
        self.dims: Dims = self._dims()

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
        depth = self.depth.dims() if self.depth else {}
        return {**self.hparams.dims(), **self.experts.dims(), "f": self.dense_size, **depth}

    def rows(self) -> Iterator[Row]:
        yield from bind(MODEL + (TIED_HEAD if self.hparams.tie_word_embeddings else HEAD))
        shared = self._attention_rows()
        for i in range(self.n_layer):
            yield from bind([*shared, *self._feed_forward_rows(i)], i)
            if self.depth:
                yield from bind(depth_rows(self.depth, i, self.names, self.present, exact=self.exact_gate), i)

    def _attention_rows(self) -> tuple[Row, ...]:
        heads, kv_heads = self.hparams.num_attention_heads, self.hparams.num_key_value_heads
        pairs = self.rope_layout == "norm" and self.half_split
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
        return found + self.scales.rows()

    def _feed_forward_rows(self, layer: int) -> Iterable[Row]:
        if layer not in self.experts.layers:
            return gated_mlp(self.dense_module)
        return expert_rows(self.expert_layout, layer, self.experts, self.present)

    def generated(self) -> dict[str, Any]:
        return rope_tensors(self.rope, self.hparams.head_dim)

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
        return found + self.scales.fields() + self.experts.fields() + (depth_fields(self.depth) if self.depth else [])

    def warnings(self) -> list[str]:
        return rope_warnings(self.rope)
