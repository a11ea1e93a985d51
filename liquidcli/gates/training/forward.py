"""One layer of a base in PyTorch: norms, rotation, attention, dense and mixed feed-forward parts.

Knows the maths of the architectures in `..stock`. Knows nothing of gates; `liquidcli.reference` is what it is checked
against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import BaseShape

Layer = dict[str, Tensor]
Rope = tuple[Tensor, Tensor]
SMALLEST_WEIGHT_SUM = 6.103515625e-5  # the smallest normal number of F16, as llama.cpp clamps


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # ref: x / sqrt(mean(x^2) + eps) * weight
    return F.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, eps)


def rope_table(n: int, shape: BaseShape, windowed: bool = False) -> Rope:  # cos, sin: [n, head_dim/2]
    own = windowed and shape.rope_base_window
    frequencies = (own or shape.rope_base) ** (
        -torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    )
    frequencies = frequencies / (1.0 if own else shape.rope_scale)
    if shape.rope_factors and not own:
        frequencies = frequencies / torch.tensor(shape.rope_factors, dtype=torch.float64)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * frequencies[None, :]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, kind: str = "norm") -> Tensor:  # x [B, H, T, D]
    if kind == "neox":  # pairs (i, i + D/2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]  # pairs (2i, 2i+1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def _project(n: Tensor, layer: Layer, name: str) -> Tensor:
    out = n @ layer[name].T
    return out + layer[f"{name}.bias"] if f"{name}.bias" in layer else out


def _heads(n: Tensor, layer: Layer, name: str, n_head: int, shape: BaseShape) -> Tensor:  # -> [B, H, T, D]
    x, norm = _project(n, layer, name), layer.get(f"{name}_norm")
    if shape.qk_norm == "full" and norm is not None:
        x = rms_norm(x, norm, shape.eps)
    x = x.unflatten(-1, (n_head, shape.head_dim))
    if shape.qk_norm == "head" and norm is not None:
        x = rms_norm(x, norm, shape.eps)
    return x.transpose(1, 2)


def attention(
    n: Tensor, layer: Layer, shape: BaseShape, rope: Rope, mask: Tensor | None = None, kv: Tensor | None = None
) -> Tensor:  # [B, T, n_embd]
    """What the half adds, from normed states `n`; `kv` are the normed states that K and V come from, where they are
    not `n`; `mask` [..., T, T] is true where a query (row) sees a key, None: all keys up to its own."""
    kv, length = n if kv is None else kv, n.shape[1]
    cos, sin = rope[0][:length], rope[1][:length]
    q = rotate(_heads(n, layer, "attn_q", shape.n_head, shape), cos, sin, shape.rope_type)
    k = rotate(_heads(kv, layer, "attn_k", shape.n_head_kv, shape), cos, sin, shape.rope_type)
    v = _heads(kv, layer, "attn_v", shape.n_head_kv, shape)
    repeat = shape.n_head // shape.n_head_kv
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scale = shape.attention_scale or None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return _post_norm(_project(out.transpose(1, 2).flatten(2), layer, "attn_output"), layer, "post_attention", shape)


def _post_norm(x: Tensor, layer: Layer, half: str, shape: BaseShape) -> Tensor:
    return rms_norm(x, layer[f"{half}_norm"], shape.eps) if f"{half}_norm" in layer else x


def feed(x: Tensor, layer: Layer, shape: BaseShape) -> Tensor:  # normed [..., n_embd] -> what the half adds
    if "ffn_gate_inp" in layer:
        out = _mixture(x.flatten(0, -2), layer, shape).view_as(x)
    else:
        out = (_activate(x @ layer["ffn_gate"].T, shape) * (x @ layer["ffn_up"].T)) @ layer["ffn_down"].T
    return _post_norm(out, layer, "post_ffw", shape)


def _activate(gate: Tensor, shape: BaseShape) -> Tensor:
    return F.gelu(gate, approximate="tanh") if shape.activation == "gelu" else F.silu(gate)


def _mixture(x: Tensor, layer: Layer, shape: BaseShape) -> Tensor:  # [n, n_embd]; experts have silu
    scores = x @ layer["ffn_gate_inp"].T
    scores = scores.sigmoid() if shape.expert_sigmoid else scores.softmax(-1)
    weights, picked = scores.topk(shape.n_expert_used)  # [n, k]
    if shape.expert_norm:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_WEIGHT_SUM)
    out = torch.zeros_like(x)
    for expert in range(len(layer["ffn_gate_exps"])):
        row, slot = (picked == expert).nonzero(as_tuple=True)
        gate, up, down = (layer[f"ffn_{part}_exps"][expert] for part in ("gate", "up", "down"))
        y = (F.silu(x[row] @ gate.T) * (x[row] @ up.T)) @ down.T
        out = out.index_add(0, row, y * (weights[row, slot, None] * shape.expert_scale))
    return out


def run_layer(
    h: Tensor, layer: Layer, shape: BaseShape, rope: Rope, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(what the layer makes of h, its attention-normed input); K and V come from every token."""
    n = rms_norm(h, layer["attn_norm"], shape.state_eps)  # [B, T, n_embd]
    h1 = h + attention(n, layer, shape, rope, mask)
    return h1 + feed(rms_norm(h1, layer["ffn_norm"], shape.state_eps), layer, shape), n
