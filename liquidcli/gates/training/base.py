"""The frozen base of a training run: its shape and its weights, read from a GGUF and dequantized to float32.

Knows the architectures whose layers `forward` computes, and refuses every key or tensor that it would ignore. Computes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError, quote
from ...gguf_file import GGUFFile, open_gguf
from ..stock import WORDS, derived_keys
from .units import POST_NORMS, Units


@dataclass(frozen=True)
class BaseShape:
    """What the forward pass needs to know of the base."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    eps: float
    rope_base: float
    rope_base_window: float = 0.0  # of layers with windows, which are then not scaled; 0: as the others
    rope_type: str = "norm"  # pairs (2i, 2i+1); neox: (i, i + head_dim/2)
    rope_scale: float = 1.0  # positions are divided by it
    rope_factors: tuple[float, ...] = ()  # frequencies are divided by them
    qk_norm: str = "none"  # none, head, full
    windows: tuple[int, ...] = ()  # one per layer, 0: none; empty: none anywhere
    embedding_scale: float = 1.0
    state_unit: float = 1.0  # what the state was divided by
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    activation: str = "silu"  # of dense layers: silu, gelu (its tanh form)
    n_expert_used: int = 0
    expert_norm: bool = True  # weights of the experts used are made to sum to 1
    expert_sigmoid: bool = False
    expert_scale: float = 1.0

    @property
    def state_eps(self) -> float:
        """Of the norms over the state; those over anything else have `eps`."""
        return self.eps / self.state_unit**2


@dataclass
class Base:
    """The frozen weights, float32, in `units` of their own."""

    path: Path
    shape: BaseShape
    units: Units
    embed: Tensor  # [n_vocab, n_embd]
    head: Tensor  # [n_vocab, n_embd]
    output_norm: Tensor  # [n_embd]
    layers: list[dict[str, Tensor]] = field(default_factory=list)

    def attention_share(self, layer: int) -> float:
        """The attention half's part of the parameters that one token uses in a layer."""
        share = lambda name, t: self.shape.n_expert_used / t.shape[0] if name.endswith("_exps") else 1.0  # noqa: E731
        counts = {name: tensor.numel() * share(name, tensor) for name, tensor in self.layers[layer].items()}
        attention = sum(count for name, count in counts.items() if name.startswith(("attn", "post_attention")))
        return attention / sum(counts.values())


_NORMS = ("attn_norm", "ffn_norm")
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
_MIXTURE = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_OPTIONAL = ("attn_q_norm", "attn_k_norm")
_WITH_POST_NORMS = ("gemma3", "liquid")
# keys that change what a layer computes, and that `forward` does not know
_UNKNOWN = (
    "attention.clamp_kqv", "attention.temperature_length", "expert_shared_feed_forward_length",
    "expert_weight_before_ffn", "final_logit_softcapping", "attn_logit_softcapping", "rope.scale_linear",
)  # fmt: skip
_UNKNOWN_BUT_TO_LIQUID = ("attention.scale", "embedding_scale", "feed_forward.activation")


def load_base(path: Path) -> Base:
    """The base of a GGUF, dequantized to float32; UsageError for one that `forward` would compute wrongly."""
    with open_gguf(path) as f:
        shape = _shape(f)
        names, units = [_layer(f, i) for i in range(shape.n_layer)], Units.of(f, shape.embedding_scale)
        shape = replace(shape, embedding_scale=shape.embedding_scale / units.state, state_unit=units.state)
        get = lambda name: torch.from_numpy(f.array(name).copy()).to(torch.get_default_device())  # noqa: E731
        embed = get("token_embd.weight")
        head = get("output.weight") if "output.weight" in f.tensors else embed
        layers = [
            {name: get(full).mul_(units.base(name, i)) for name, full in found.items()} for i, found in enumerate(names)
        ]
        return Base(Path(path), shape, units, embed, head, get("output_norm.weight"), layers)


def base_units(f: GGUFFile) -> Units:
    return Units.of(f, _shape(f).embedding_scale)


def _layer(f: GGUFFile, layer: int) -> dict[str, str]:
    """Short names (biases: `attn_q.bias`) and the tensors they stand for; UsageError for one too many or too few."""
    prefix = f"blk.{layer}."
    found = {name.removeprefix(prefix).removesuffix(".weight"): name for name in f.tensors if name.startswith(prefix)}
    needed = {*_NORMS, *_ATTENTION, *(_MIXTURE if "ffn_gate_inp" in found else _DENSE)}
    known = needed | set(_OPTIONAL) | {f"{name}.bias" for name in _ATTENTION}
    known |= set(POST_NORMS) if f.architecture in _WITH_POST_NORMS else set()
    if odd := sorted(set(found) - known) or sorted(needed - set(found)):
        is_odd = "has" if odd[0] in found else "has not"
        raise UsageError(f"{f.path} {is_odd} the tensor {prefix}{odd[0]}, so the trainer cannot compute it")
    return found


def _shape(f: GGUFFile) -> BaseShape:
    arch = f.architecture
    if arch not in WORDS:
        raise UsageError(f"{f.path} has the architecture {quote(arch)}; gates can be trained on {', '.join(WORDS)}")

    def said(key: str, default: Any = None) -> Any:
        return f.metadata.get(f"{arch}.{key}", default)

    _refuse_unknown(f, said)
    derived = derived_keys(f)

    def get(key: str, default: Any = None) -> Any:
        return derived.get(key, said(key, default))

    if get("depth.gate_span") is not None:
        raise UsageError(f"{f.path} has gates already; a pack is trained for the plain base")
    n_head, n_embd, n_head_kv = get("attention.head_count"), get("embedding_length"), get("attention.head_count_kv")
    return BaseShape(
        n_layer=f.block_count,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv or n_head,
        head_dim=get("attention.key_length") or n_embd // n_head,
        eps=get("attention.layer_norm_rms_epsilon"),
        rope_base=get("rope.freq_base", 10000.0),
        rope_scale=float(get("rope.scaling.factor") or 1.0) if get("rope.scaling.type", "linear") == "linear" else 1.0,
        rope_factors=tuple(f.array("rope_freqs.weight").tolist()) if "rope_freqs.weight" in f.tensors else (),
        rope_type=get("rope.type", "norm"),
        rope_base_window=get("rope.freq_base_swa", 0.0),
        qk_norm=get("attention.qk_norm", "none"),
        windows=_windows(get, f.block_count),
        embedding_scale=get("embedding_scale", 1.0),
        attention_scale=get("attention.scale", 0.0),
        activation=get("feed_forward.activation", "silu"),
        **_experts(get),
    )


def _experts(get: Any) -> dict[str, Any]:
    if not get("expert_count"):
        return {}
    return {
        "n_expert_used": get("expert_used_count"),
        "expert_norm": get("expert_weights_norm", True),
        "expert_sigmoid": get("expert_gating_func", 1) == 2,
        "expert_scale": get("expert_weights_scale", 0.0) or 1.0,
    }


def _windows(get: Any, n_layer: int) -> tuple[int, ...]:
    if get("attention.window_type", "none") == "none":
        return ()
    pattern = get("attention.sliding_window_pattern")
    return tuple(get("attention.sliding_window") * bool(windowed) for windowed in pattern[:n_layer])


def _refuse_unknown(f: GGUFFile, get: Any) -> None:
    odd = [key for key in _UNKNOWN if get(key)]
    odd += [key for key in _UNKNOWN_BUT_TO_LIQUID if get(key) and f.architecture != "liquid"]
    odd += ["feed_forward.activation"] if get("feed_forward.activation", "silu") not in ("silu", "gelu") else []
    odd += ["rope_freqs"] if get("rope.freq_base_swa") and "rope_freqs.weight" in f.tensors else []
    odd += ["rope.scaling.type"] if get("rope.scaling.type") not in (None, "none", "linear") else []
    odd += ["rope.type"] if get("rope.type", "norm") not in ("norm", "neox") else []
    odd += ["rope.layers"] if not all(get("rope.layers", [True])) else []
    odd += ["attention.qk_norm"] if get("attention.qk_norm", "none") == "l2" else []
    window = get("attention.window_type", "none")
    plain = f.architecture not in ("liquid", "gemma3") and get("attention.sliding_window")
    listed = isinstance(get("attention.sliding_window_pattern"), list)
    odd += ["attention.sliding_window"] if plain or window == "chunked" or (window == "sliding" and not listed) else []
    odd += [k for k in ("attention.head_count", "attention.head_count_kv") if isinstance(get(k), list)]
    head_dim = get("attention.key_length") or get("embedding_length") // (_first(get("attention.head_count")) or 1)
    odd += [k for k in ("rope.dimension_count", "attention.value_length") if get(k, head_dim) != head_dim]
    if odd:
        raise UsageError(f"{f.path} has {', '.join(odd)} of a kind that the trainer does not compute")


def _first(value: Any) -> int:
    return value[0] if isinstance(value, list) else value
