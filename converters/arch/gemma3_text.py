"""Gemma 3, alone or as the text part of the multimodal model, to GGUF architecture `gemma3`.

Knows which numbers llama.cpp's graph has built in: the pattern of windows is written where it differs, the scale of q
is folded into q's norm, and what neither helps is refused. Does not convert what sees images.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError, LiquidError

from .. import fields
from ..config import Config
from ..fields import Field
from ..registry import Reason, arch
from ..rope import Rope, read_section, rope_fields
from ..tensors import Row, bind, drop, row
from ..transforms import PLUS_ONE, SAME, plus_one_times
from ..windows import MAX_WINDOW, Window
from .llama import HEAD, TIED_HEAD, Llama, attention, gated_mlp, qk_norms

MODEL = (
    row("model.embed_tokens.weight", "token_embd.weight", "v d", role="embed"),
    row("model.norm.weight", "output_norm.weight", "d", PLUS_ONE),
)
LAYER = "model.layers.{i}."
NORMS = (
    row(LAYER + "input_layernorm.weight", "blk.{i}.attn_norm.weight", "d", PLUS_ONE),
    row(LAYER + "post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", "d", PLUS_ONE),
    row(LAYER + "pre_feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight", "d", PLUS_ONE),
    row(LAYER + "post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "d", PLUS_ONE),
    drop(LAYER + "self_attn.rotary_emb.inv_freq", "computed from rope_theta"),
)
# ref: llama.cpp, models/gemma3.cpp
STOCK_PATTERN, LAYERS_OF_27B = 6, 62
KINDS = {"full_attention", "sliding_attention"}


@arch("Gemma3ForCausalLM")
class Gemma3(Llama):
    gguf_name = "gemma3"
    rope_layout = "neox"
    reads_factors = False
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    }  # fmt: skip

    def __init__(self, config: Config, present: Collection[str] = (), *, exact_gate: bool = False) -> None:
        config = config.filled(self.defaults)
        config.only("hidden_activation", "gelu_pytorch_tanh", why="feed-forward parts use its gelu")
        config.only("use_bidirectional_attention", False, why="tokens see what came before them")
        config.only("attn_logit_softcapping", why="llama.cpp's `gemma3` caps no attention")
        config.only("attention_bias", False, why="llama.cpp's `gemma3` has no bias on the attention's output")
        super().__init__(config, present)
        self.cap = config.positive("final_logit_softcapping", None)
        self.q_scale = math.sqrt(self._stock_scalar() / config.positive("query_pre_attn_scalar"))

    def _rope(self, config: Config) -> Rope:
        self.local_theta, section = _rotations(config)
        rope = read_section(config, section, config.positive("rope_theta", 1e6)).computable(reads_betas=False)
        if rope.needs_factors or any(one.key.endswith("scaling.attn_factor") for one in rope_fields(rope, "gemma3")):
            raise LiquidError(f"{section.where}: llama.cpp's `gemma3` has neither frequency factors nor magnitudes")
        return rope

    def _window(self, config: Config) -> Window:
        step = config.integer("sliding_window_pattern", STOCK_PATTERN)
        config.raw("_sliding_window_pattern")  # transformers' memory of the one above
        types = config.items("layer_types", str, self.n_layer, default=None)
        if types is not None and set(types) - KINDS:
            raise LiquidError(f"config.json: layer_types {sorted(set(types))} are not supported by this architecture")
        layers = _every(step, self.n_layer) if types is None else tuple(one == "sliding_attention" for one in types)
        size = config.integer("sliding_window", 0, low=0, high=MAX_WINDOW)
        if any(layers) and not size:
            raise IntegrityError("config.json: layers have sliding windows, but sliding_window is missing")
        return Window("sliding", size, layers) if any(layers) else Window()

    def _stock_scalar(self) -> int:
        hparams = self.hparams
        wide = hparams.num_hidden_layers == LAYERS_OF_27B
        return hparams.hidden_size // hparams.num_attention_heads if wide else hparams.head_dim

    def beyond_stock(self) -> list[Reason]:
        return []  # what `gemma3` cannot say has been refused

    def rows(self) -> Iterator[Row]:
        yield from bind(MODEL + (TIED_HEAD if self.hparams.tie_word_embeddings else HEAD))
        q_norm = PLUS_ONE if self.q_scale == 1 else plus_one_times(self.q_scale)
        layer = NORMS + attention(SAME, SAME) + qk_norms("h", "h", q_norm, PLUS_ONE) + gated_mlp("mlp")
        for i in range(self.n_layer):
            yield from bind(layer, i)

    def fields(self) -> list[Field]:
        name = self.gguf_name
        found = self.hparams.common_fields(name, rope_fields(self.rope, name)) + self.hparams.length_fields(name)
        found.append(fields.f32(f"{name}.rope.freq_base_swa", self.local_theta))
        found.append(fields.u32(f"{name}.feed_forward_length", self.intermediate_size))
        if self.window.size:
            found.append(fields.u32(f"{name}.attention.sliding_window", self.window.size))
            if self.window.layers != _every(STOCK_PATTERN, self.n_layer):
                pattern = fields.array(f"{name}.attention.sliding_window_pattern", self.window.layers, Type.BOOL)
                found.append(pattern)
        return found + ([fields.f32(f"{name}.final_logit_softcapping", self.cap)] if self.cap else [])


def _every(step: int, n_layer: int) -> tuple[bool, ...]:
    """Windows everywhere but in each step's last layer."""
    return tuple((layer + 1) % step != 0 for layer in range(n_layer))


def _rotations(config: Config) -> tuple[float, Config]:
    """The base of layers with windows, and what scales the others; both in the old spelling and the new one."""
    local = config.positive("rope_local_base_freq", 1e4)
    both = config.section("rope_parameters") or Config({})
    if set(both.values) - KINDS:
        raise LiquidError(f"config.json: rope_parameters has {sorted(both.values)}, expected {sorted(KINDS)}")
    full, scaling = both.section("full_attention") or Config({}), config.section("rope_scaling")
    sliding = both.section("sliding_attention") or Config({})
    sliding.only("rope_type", "default", why="layers with windows rotate unscaled")
    if scaling is None:
        return sliding.positive("rope_theta", local), full
    for name in full.values:
        full.raw(name)
    return sliding.positive("rope_theta", local), scaling.filled(full.values)


IMAGES = ("vision_tower.", "multi_modal_projector.")
IMAGE_KEYS = ("vision_config", "mm_tokens_per_image", "image_token_index", "boi_token_index", "eoi_token_index",
              "image_token_id", "boi_token_id", "eoi_token_id")  # fmt: skip


@arch("Gemma3ForConditionalGeneration")
class Gemma3Text(Gemma3):
    """The text part of the multimodal model, whose tensors have been named in two ways."""

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        if (text := config.section("text_config")) is None:
            raise IntegrityError("config.json has no text_config")
        for name in IMAGE_KEYS:
            config.raw(name)
        tied = {"tie_word_embeddings": config.flag("tie_word_embeddings", True)}
        self.images = [name for name in present if name.removeprefix("model.").startswith(IMAGES)]
        self.whole_models = any(name.startswith("language_model.model.") for name in present)
        super().__init__(text.extended(tied), present)

    def _named(self, name: str) -> str:
        if self.whole_models:
            return "language_model." + name
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    def rows(self) -> Iterator[Row]:
        for item in super().rows():
            sources = tuple((self._named(name), shape) for name, shape in item.sources)
            yield replace(item, sources=sources, same_as=item.same_as and self._named(item.same_as))
        for name in self.images:
            yield drop(name, "only the text part is converted")
