"""Attention of one layer: projections, q/k norms, rotation, windows, temperature. Knows nothing of depth.

Order, as llama.cpp has it: project, bias, clamp, norm (head, full), rotate, norm (l2). Layers without RoPE scale q by
position instead of the last two.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .config import LiquidConfig
from .rope import rope_tables, rotate


def rms_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * rms_norm(x, self.eps)


def visible(config: LiquidConfig, positions: torch.Tensor, *, windowed: bool) -> torch.Tensor:
    """Which key positions (columns) a query position (rows) sees.

    sliding: the last `window_size` positions, its own included; chunked: those of its own chunk of `window_size`.
    """
    query, key = positions[:, None], positions[None, :]
    mask = key <= query  # [T, T]
    if windowed and config.window_type == "sliding":
        mask &= query - key < config.window_size
    elif windowed and config.window_type == "chunked":
        mask &= key >= query // config.window_size * config.window_size
    return mask


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """q [B, n_head, T, head_dim], k and v [B, n_head_kv, S, head_dim], mask [.., T, S]; K,V heads serve neighbours."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Context:
    """What all layers share in one forward pass: positions, rotation tables and the two masks."""

    def __init__(self, config: LiquidConfig, positions: torch.Tensor) -> None:
        self.positions = positions  # [T]
        both = (False, True)
        self.turns = {windowed: rope_tables(config, positions, windowed=windowed) for windowed in both}
        self.masks = {windowed: visible(config, positions, windowed=windowed) for windowed in both}  # [T, T]
        steps = torch.floor((positions.float() + 1) / config.floor_scale)
        self.temperature = torch.log1p(steps) * config.attn_scale + 1  # [T]; ref: Llama 4


class Attention(nn.Module):
    def __init__(self, config: LiquidConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        hidden, size = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * size, config.num_key_value_heads * size
        self.q_proj = nn.Linear(hidden, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=config.attention_out_bias)
        if config.qk_norm in ("head", "full"):
            self.q_norm = RMSNorm(size if config.qk_norm == "head" else q_size, config.rms_norm_eps)
            self.k_norm = RMSNorm(size if config.qk_norm == "head" else kv_size, config.rms_norm_eps)

    def forward(self, n: torch.Tensor, context: Context, stored: torch.Tensor | None = None) -> torch.Tensor:
        """`stored` [B, T]: whose K,V exist in this layer, all if None; a token always sees its own."""
        q, k, v = self._project(n)
        q, k = self._place(q, context, is_query=True), self._place(k, context, is_query=False)
        mask = context.masks[self.config.has_window(self.layer)]  # [T, T]
        if stored is not None:
            own = torch.eye(len(mask), dtype=torch.bool, device=mask.device)
            mask = mask & (stored[:, None, None, :] | own)  # [B, 1, T, T]
        out = attend(q, k, v, mask, self.config.attention_multiplier)  # [B, n_head, T, head_dim]
        return self.o_proj(out.transpose(1, 2).flatten(2))  # [B, T, hidden]

    def _project(self, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = self.q_proj(n), self.k_proj(n), self.v_proj(n)
        if (limit := self.config.clip_qkv) is not None:
            q, k, v = (x.clamp(-limit, limit) for x in (q, k, v))
        if self.config.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (
            x.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2) for x in (q, k, v)
        )  # [B, heads, T, head_dim]
        if self.config.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def _place(self, x: torch.Tensor, context: Context, *, is_query: bool) -> torch.Tensor:
        """Gives q or k its position: by rotation, or (queries of layers without RoPE) by temperature."""
        if self.config.has_rope(self.layer):
            x = rotate(x, *context.turns[self.config.has_window(self.layer)])
            return rms_norm(x, self.config.rms_norm_eps) if self.config.qk_norm == "l2" else x
        if is_query and self.config.attn_temperature_tuning:
            return x * context.temperature[:, None].to(x.dtype)
        return x
