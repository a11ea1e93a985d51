"""Llama-shaped models (Llama 2 and 3.x, SmolLM2, Mistral) to GGUF architecture `llama`.

Knows the names, shapes and keys of transformers' LlamaForCausalLM and MistralForCausalLM. Knows nothing of depth gates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from liquidcli.errors import IntegrityError, LiquidError

from .. import fields
from ..config import MAX_LAYERS, Config
from ..fields import Field
from ..registry import arch
from ..rope import Rope, read_rope, rope_factors, rope_fields, rope_warnings
from ..tensors import Row, bind, drop, row
from ..transforms import Transform, interleaved

MODEL = (
    row("model.embed_tokens.weight", "token_embd.weight", "v d", role="embed"),
    row("model.norm.weight", "output_norm.weight", "d"),
)
HEAD = (row("lm_head.weight", "output.weight", "v d", role="output"),)
TIED_HEAD = (drop("lm_head.weight", "tied to the embedding", same_as="model.embed_tokens.weight"),)
NORMS = (
    row("model.layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", "d"),
    row("model.layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", "d"),
    drop("model.layers.{i}.self_attn.rotary_emb.inv_freq", "computed from rope_theta"),
)


def attention(q: Transform, k: Transform) -> tuple[Row, ...]:
    return (
        row("model.layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", "q d", q, role="attn_q"),
        row("model.layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", "k d", k, role="attn_k"),
        row("model.layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", "k d", role="attn_v"),
        row("model.layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", "d q", role="attn_output"),
    )


def qkv_biases(q: Transform, k: Transform) -> tuple[Row, ...]:
    return (
        row("model.layers.{i}.self_attn.q_proj.bias", "blk.{i}.attn_q.bias", "q", q),
        row("model.layers.{i}.self_attn.k_proj.bias", "blk.{i}.attn_k.bias", "k", k),
        row("model.layers.{i}.self_attn.v_proj.bias", "blk.{i}.attn_v.bias", "k"),
    )


OUT_BIAS = (row("model.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", "d"),)


def gated_mlp(module: str) -> tuple[Row, ...]:
    """The dense feed-forward part, under the module's name: `mlp` or `feed_forward`."""
    source = "model.layers.{i}." + module
    return (
        row(f"{source}.gate_proj.weight", "blk.{i}.ffn_gate.weight", "f d", role="ffn_gate"),
        row(f"{source}.up_proj.weight", "blk.{i}.ffn_up.weight", "f d", role="ffn_up"),
        row(f"{source}.down_proj.weight", "blk.{i}.ffn_down.weight", "d f", role="ffn_down"),
    )


MLP_BIASES = (
    row("model.layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", "f"),
    row("model.layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", "f"),
    row("model.layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", "d"),
)


@dataclass(frozen=True)
class Hparams:
    """What every Llama-shaped configuration has, spelled as there; defaults are LlamaConfig's."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool

    @classmethod
    def read(cls, config: Config, *, rms_norm_eps: float = 1e-6) -> Hparams:
        hidden_size, heads = config.integer("hidden_size"), config.integer("num_attention_heads", high=1 << 16)
        head_dim = config.integer("head_dim", None, high=1 << 16)
        if head_dim is None and hidden_size % heads:
            raise IntegrityError(f"config.json: {heads} heads do not divide hidden_size {hidden_size}")
        found = cls(
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            num_hidden_layers=config.integer("num_hidden_layers", high=MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=config.integer("num_key_value_heads", heads, high=1 << 16),
            head_dim=head_dim or hidden_size // heads,
            max_position_embeddings=config.integer("max_position_embeddings", 2048, high=(1 << 31) - 1),
            rms_norm_eps=config.positive("rms_norm_eps", rms_norm_eps),
            tie_word_embeddings=config.flag("tie_word_embeddings", False),
            attention_bias=config.flag("attention_bias", False),
        )
        found.check()
        return found

    def check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise IntegrityError("config.json: num_attention_heads is no multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise IntegrityError(f"config.json: head_dim is {self.head_dim}, an even number was expected")

    def dims(self) -> dict[str, int]:
        return {
            "v": self.vocab_size,
            "d": self.hidden_size,
            "q": self.num_attention_heads * self.head_dim,
            "k": self.num_key_value_heads * self.head_dim,
            "h": self.head_dim,
        }

    def fields(self, name: str, rope_keys: list[Field]) -> list[Field]:
        return [
            fields.u32(f"{name}.block_count", self.num_hidden_layers),
            fields.u32(f"{name}.context_length", self.max_position_embeddings),
            fields.u32(f"{name}.embedding_length", self.hidden_size),
            fields.u32(f"{name}.attention.head_count", self.num_attention_heads),
            fields.u32(f"{name}.attention.head_count_kv", self.num_key_value_heads),
            *rope_keys,
            fields.f32(f"{name}.attention.layer_norm_rms_epsilon", self.rms_norm_eps),
            fields.u32(f"{name}.attention.key_length", self.head_dim),
            fields.u32(f"{name}.attention.value_length", self.head_dim),
            fields.u32(f"{name}.vocab_size", self.vocab_size),
            fields.u32(f"{name}.rope.dimension_count", self.head_dim),
        ]


def refuse_foreign_maths(config: Config) -> None:
    config.only("hidden_act", "silu", "swish", why="feed-forward parts use silu")
    config.only("is_causal", True, why="tokens see what came before them")
    config.only("use_sliding_window", False, why="windows are named by layer_types")
    if config.raw("quantization_config"):
        raise LiquidError("config.json: the weights are quantized already, 16- or 32-bit floats were expected")


def rope_tensor(rope: Rope, head_dim: int) -> dict[str, Any]:
    factors = rope_factors(rope, head_dim)
    return {} if factors is None else {"rope_freqs.weight": factors}


@arch("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
class Llama:
    gguf_name = "llama"

    def __init__(self, config: Config, present: Collection[str], *, fold_gates: bool = True) -> None:
        refuse_foreign_maths(config)
        self.hparams = Hparams.read(config)
        self.intermediate_size = config.integer("intermediate_size")
        self.mlp_bias = config.flag("mlp_bias", False)
        self.rope = read_rope(config)
        self.n_vocab = self.hparams.vocab_size
        self.dims = {**self.hparams.dims(), "f": self.intermediate_size}
        self._window = config.integer("sliding_window", None, high=(1 << 31) - 1)
        self._check_layer_types(config)

    def _check_layer_types(self, config: Config) -> None:
        types = config.items("layer_types", str, self.hparams.num_hidden_layers, default=None)
        if types is not None and set(types) - {"full_attention", "sliding_attention"}:
            raise LiquidError(f"config.json: layer_types {sorted(set(types))} are not supported by this architecture")
        if types is not None and set(types) == {"full_attention"}:
            self._window = None

    def rows(self) -> Iterator[Row]:
        q, k = interleaved(self.hparams.num_attention_heads), interleaved(self.hparams.num_key_value_heads)
        layer = NORMS + attention(q, k) + gated_mlp("mlp")
        if self.hparams.attention_bias:
            layer += qkv_biases(q, k) + OUT_BIAS
        if self.mlp_bias:
            layer += MLP_BIASES
        yield from bind(MODEL + (TIED_HEAD if self.hparams.tie_word_embeddings else HEAD))
        for i in range(self.hparams.num_hidden_layers):
            yield from bind(layer, i)

    def generated(self) -> dict[str, Any]:
        return rope_tensor(self.rope, self.hparams.head_dim)

    def fields(self) -> list[Field]:
        found = self.hparams.fields("llama", rope_fields(self.rope, "llama"))
        return [*found, fields.u32("llama.feed_forward_length", self.intermediate_size)]

    def warnings(self) -> list[str]:
        found = rope_warnings(self.rope)
        if self._window and self._window < self.hparams.max_position_embeddings:
            found.append(
                f"llama.cpp's `llama` has no attention window: past {self._window} tokens each still sees all before it"
            )
        return found
