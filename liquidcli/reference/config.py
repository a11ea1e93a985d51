"""LiquidConfig: what a `liquid` Hugging Face checkpoint says in config.json: spelling, defaults, validity; no tensors.

Names are the Llama 4 text model's where it has one, else those of the model that introduced the feature:

    intermediate_size_mlp            dense layers' feed-forward size (intermediate_size if there is no MoE layer)
    intermediate_size                one expert's feed-forward size
    shared_expert_intermediate_size  0: no shared expert
    moe_layers                       indices of the MoE layers, explicit; num_local_experts, num_experts_per_tok
    scoring_func                     softmax, sigmoid; norm_topk_prob, routed_scaling_factor, expert_weight_before_ffn
    no_rope_layers                   one per layer, 1 = RoPE, 0 = none; absent = RoPE everywhere
    layer_types                      one per layer: full_attention, and either sliding_attention or chunked_attention
    sliding_window, attention_chunk_size, attn_temperature_tuning, floor_scale, attn_scale, clip_qkv
    attention_bias                   q, k, v; attention_out_bias: o (absent = as attention_bias)
    qk_norm                          none; head, full (weights q_norm, k_norm; before RoPE);
                                     l2 (no weight; after RoPE; in layers with RoPE only)
    rope_scaling                     {rope_type: default|linear|llama3|yarn, factor, ...} as in transformers
    rope_local_base_freq             base of layers with a window, which then are not scaled (absent = as the others)
    hidden_act                       silu, gelu_pytorch_tanh: of dense layers (experts, adapters: silu)
    sandwich_norm                    norms on what each half adds (weights post_self_attn_layernorm, post_mlp_layernorm)
    embedding_multiplier, attention_multiplier (absent = head_dim ** -0.5), final_logit_softcapping

`rope_layout` does not describe this checkpoint: its q/k rows (weights, biases, and q_norm/k_norm weights) are always in
the half-split order of Hugging Face models, feature i of a head rotating with feature i + head_dim/2. It says which
layout the GGUF gets: `neox` keeps the rows as they are; `norm` interleaves each head's halves as the llama converters
do, (2, d/2) -> (d/2, 2), which must then be done to biases and to q/k norm weights too; `none`: no RoPE in any layer.

`depth` holds the depth gates, spelled as in GGUF; None = no gates. `gate_bias` and `gate_folded` are not written: they
follow from which tensors the checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from liquidcli.errors import IntegrityError, quote
from liquidcli.gate_layout import GatePlace

from .depth_config import DepthConfig, require

LAYER_TYPES = ("full_attention", "sliding_attention", "chunked_attention")
CHOICES = {
    "rope_layout": ("norm", "neox", "none"),
    "rope_type": ("default", "linear", "llama3", "yarn"),
    "qk_norm": ("none", "head", "full", "l2"),
    "scoring_func": ("softmax", "sigmoid"),
    "hidden_act": ("silu", "gelu_pytorch_tanh"),
}
MODEL_TYPES = ("liquid", "llama", "mistral")
INFERRED = ("gate_bias", "gate_folded")


@dataclass(frozen=True)
class LiquidConfig:
    """config.json of a `liquid` checkpoint; also reads those of plain Llama-shaped models (no gates)."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size_mlp: int = 0
    intermediate_size: int = 0
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    attention_bias: bool = False
    attention_out_bias: bool | None = None
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_layout: str = "neox"
    no_rope_layers: tuple[int, ...] | None = None
    qk_norm: str = "none"
    layer_types: tuple[str, ...] | None = None
    sliding_window: int | None = None
    attention_chunk_size: int | None = None
    attn_temperature_tuning: bool = False
    floor_scale: int = 8192
    attn_scale: float = 0.1
    clip_qkv: float | None = None
    rope_local_base_freq: float | None = None
    hidden_act: str = "silu"
    sandwich_norm: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None
    final_logit_softcapping: float | None = None
    moe_layers: tuple[int, ...] = ()
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    shared_expert_intermediate_size: int = 0
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    expert_weight_before_ffn: bool = False
    depth: DepthConfig | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        if isinstance(self.depth, Mapping):
            put("depth", _build(DepthConfig, self.depth))
        put("moe_layers", tuple(self.moe_layers or ()))
        for name in ("no_rope_layers", "layer_types"):
            if (value := getattr(self, name)) is not None:
                put(name, tuple(value))
                require(
                    len(value) >= self.num_hidden_layers,
                    f"{name} has {len(value)} entries for {self.num_hidden_layers} layers",
                )
        put("num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        put("head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)
        if self.attention_out_bias is None:
            put("attention_out_bias", self.attention_bias)
        if not self.moe_layers:
            put("intermediate_size_mlp", self.intermediate_size_mlp or self.intermediate_size)
        self._check()

    def _check(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            require(value in allowed, f"{name} is {quote(value)}, expected one of {', '.join(allowed)}")
        kinds = set(self.layer_types or ())
        n_expert, n_used = self.num_local_experts, self.num_experts_per_tok
        spans = self.depth.gate_span if self.depth else [0] * self.num_hidden_layers
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads is no multiple of num_key_value_heads",
        )
        require(self.head_dim % 2 == 0, f"head_dim is {self.head_dim}, expected an even number")
        require(kinds <= set(LAYER_TYPES), f"layer_types has other values than {', '.join(LAYER_TYPES)}")
        require(len(kinds - {"full_attention"}) <= 1, "layer_types mixes sliding and chunked windows")
        require(self.window_type == "none" or self.window_size > 0, f"{self.window_type} windows without a size")
        require(not self.moe_layers or self.hidden_act == "silu", f"hidden_act {self.hidden_act} with MoE layers")
        require(
            self.rope_local_base_freq is None or self.rope_type in ("default", "linear"),
            f"rope_type {self.rope_type} with rope_local_base_freq",
        )
        require(not self.moe_layers or 0 < n_used <= n_expert, "MoE layers without experts to pick from")
        require(len(spans) == self.num_hidden_layers, "depth.gate_span: expected one entry per layer")

    @property
    def rope_type(self) -> str:
        scaling = self.rope_scaling or {}
        return scaling.get("rope_type", scaling.get("type", "default"))

    @property
    def window_type(self) -> str:
        """none, sliding or chunked: the GGUF's spelling."""
        kinds = {t.removesuffix("_attention") for t in (self.layer_types or ())[: self.num_hidden_layers]}
        return next(iter(kinds - {"full"}), "none")

    @property
    def window_size(self) -> int:
        return {"none": 0, "sliding": self.sliding_window, "chunked": self.attention_chunk_size}[self.window_type] or 0

    def has_window(self, layer: int) -> bool:
        return self.layer_types is not None and self.layer_types[layer] != "full_attention"

    def has_rope(self, layer: int) -> bool:
        return self.rope_layout != "none" and (self.no_rope_layers is None or bool(self.no_rope_layers[layer]))

    @property
    def gates(self) -> tuple[GatePlace, ...]:
        return self.depth.gates if self.depth else ()

    @property
    def gate_layers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(gate.layer for gate in self.gates))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LiquidConfig:
        """From a config.json's object; unknown keys are ignored here (the converter reports them)."""
        values = dict(values)
        model_type = values.get("model_type", "liquid")
        require(model_type in MODEL_TYPES, f"model_type is {quote(model_type)}, the reference reads {MODEL_TYPES}")
        if parameters := values.get("rope_parameters"):  # newer transformers' one object for both
            values.setdefault("rope_theta", parameters.get("rope_theta", 10000.0))
            values.setdefault("rope_scaling", {k: v for k, v in parameters.items() if k != "rope_theta"})
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = values["eos_token_id"][0]
        if model_type != "liquid":
            values["rope_layout"] = "norm"
            if model_type == "mistral" and values.get("sliding_window"):
                values["layer_types"] = ["sliding_attention"] * values["num_hidden_layers"]
        return _build(cls, values)

    def to_dict(self) -> dict[str, Any]:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.depth is None:
            del values["depth"]
        else:
            values["depth"] = {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in asdict(self.depth).items()
                if k not in INFERRED and v is not None
            }
        return {"model_type": "liquid", "architectures": ["LiquidForCausalLM"], **values}


def _build(kind: type, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    try:
        return kind(**{k: v for k, v in values.items() if k in known})
    except TypeError as err:
        raise IntegrityError(f"config.json: {err}") from err
