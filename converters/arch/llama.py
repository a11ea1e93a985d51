"""Llama-shaped models (Llama 2 and 3.x, SmolLM2) to GGUF architecture `llama`.

Knows the names, shapes and keys of transformers' LlamaForCausalLM; cousins inherit from here. Knows no depth gates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from liquidcli.errors import IntegrityError, LiquidError

from .. import fields
from ..config import MAX_LAYERS, Config
from ..fields import Field
from ..registry import Reason, arch
from ..rope import Rope, read_rope, rope_fields, rope_warnings
from ..rope_factors import rope_tensors
from ..tensors import Dims, Row, bind, drop, row
from ..transforms import SAME, Transform, interleaved
from ..windows import Window

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


def qk_norms(shape_q: str, shape_k: str, q: Transform, k: Transform) -> tuple[Row, ...]:
    return (
        row("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", shape_q, q),
        row("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", shape_k, k),
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

    def common_fields(self, name: str, rope_keys: list[Field]) -> list[Field]:
        return [
            fields.u32(f"{name}.block_count", self.num_hidden_layers),
            fields.u32(f"{name}.context_length", self.max_position_embeddings),
            fields.u32(f"{name}.embedding_length", self.hidden_size),
            fields.u32(f"{name}.attention.head_count", self.num_attention_heads),
            fields.u32(f"{name}.attention.head_count_kv", self.num_key_value_heads),
            *rope_keys,
            fields.f32(f"{name}.attention.layer_norm_rms_epsilon", self.rms_norm_eps),
        ]

    def length_fields(self, name: str) -> list[Field]:
        return [
            fields.u32(f"{name}.attention.key_length", self.head_dim),
            fields.u32(f"{name}.attention.value_length", self.head_dim),
        ]

    def fields(self, name: str, rope_keys: list[Field]) -> list[Field]:
        return [
            *self.common_fields(name, rope_keys),
            *self.length_fields(name),
            fields.u32(f"{name}.vocab_size", self.vocab_size),
            fields.u32(f"{name}.rope.dimension_count", self.head_dim),
        ]


def refuse_foreign_maths(config: Config) -> None:
    config.only("hidden_act", "silu", "swish", why="feed-forward parts use silu")
    refuse_unreadable(config)


def refuse_unreadable(config: Config) -> None:
    """What no choice of keys could make right."""
    config.only("is_causal", True, why="tokens see what came before them")
    if config.raw("quantization_config"):
        raise LiquidError("config.json: the weights are quantized already, 16- or 32-bit floats were expected")


@arch("LlamaForCausalLM", "LLaMAForCausalLM")
class Llama:
    gguf_name = "llama"
    rope_layout = "norm"  # how llama.cpp's graph of this architecture pairs features
    reads_factors = True  # whether it has tensors of frequencies
    qk_norm = "none"
    defaults: ClassVar[dict[str, Any]] = {}  # of transformers' class, for keys that config.json leaves out

    def __init__(self, config: Config, present: Collection[str] = (), *, exact_gate: bool = False) -> None:
        config = config.filled(self.defaults)
        refuse_foreign_maths(config)
        self.hparams = Hparams.read(config)
        self.n_layer = self.hparams.num_hidden_layers
        self.intermediate_size = config.integer("intermediate_size")
        self.qkv_bias, self.out_bias, self.mlp_bias = self._biases(config)
        self.rope = self._rope(config)
        self.window = self._window(config)
        self.n_vocab = self.hparams.vocab_size
        self.dims: Dims = {**self.hparams.dims(), "f": self.intermediate_size}

    def _biases(self, config: Config) -> tuple[bool, bool, bool]:
        """Of q, k and v; of the attention's output; of the feed-forward part."""
        return self.hparams.attention_bias, self.hparams.attention_bias, config.flag("mlp_bias", False)

    def _rope(self, config: Config) -> Rope:
        return read_rope(config, longrope=self.reads_factors).computable(reads_betas=False)

    def _window(self, config: Config) -> Window:
        config.only("use_sliding_window", False, why="Llama has no attention windows")
        types = config.items("layer_types", str, self.n_layer, default=())
        if set(types) - {"full_attention"}:
            raise LiquidError(f"config.json: layer_types {sorted(set(types))} are not supported by this architecture")
        return Window()

    def rows(self) -> Iterator[Row]:
        yield from bind(MODEL + (TIED_HEAD if self.hparams.tie_word_embeddings else HEAD))
        for i in range(self.n_layer):
            yield from bind(self.layer_rows(), i)

    def layer_rows(self) -> tuple[Row, ...]:
        heads = self.hparams.num_attention_heads, self.hparams.num_key_value_heads
        q, k = (interleaved(n) if self.rope_layout == "norm" else SAME for n in heads)
        found = NORMS + attention(q, k) + gated_mlp("mlp")
        found += qkv_biases(q, k) if self.qkv_bias else ()
        found += OUT_BIAS if self.out_bias else ()
        found += MLP_BIASES if self.mlp_bias else ()
        return found + (qk_norms("h", "h", SAME, SAME) if self.qk_norm == "head" else ())

    def generated(self) -> dict[str, Any]:
        return rope_tensors(self.rope, self.hparams.head_dim)

    def fields(self) -> list[Field]:
        found = self.hparams.fields(self.gguf_name, rope_fields(self.rope, self.gguf_name))
        return [*found, fields.u32(f"{self.gguf_name}.feed_forward_length", self.intermediate_size)]

    def warnings(self) -> list[str]:
        return rope_warnings(self.rope)

    def beyond_stock(self) -> list[Reason]:
        """What llama.cpp's own graph of this architecture would get wrong."""
        found = []
        if self.window.size:
            found.append(Reason(f"has no attention windows, this model's are of {self.window.size} tokens"))
        if self.rope.needs_factors and not self.reads_factors:
            found.append(Reason("has no frequency factors, which this model's rope_type needs", loads=False))
        return found

    def liquid_words(self) -> dict[str, Any]:
        """The same model in the words of a `liquid` configuration, but for the rotation."""
        types = ["sliding_attention" if windowed else "full_attention" for windowed in self.window.layers]
        return {
            **asdict(self.hparams),
            "intermediate_size_mlp": self.intermediate_size,
            "attention_bias": self.qkv_bias,
            "attention_out_bias": self.out_bias,
            "rope_layout": self.rope_layout,
            "qk_norm": self.qk_norm,
            "sliding_window": self.window.size or None,
            "layer_types": types or None,
        }
