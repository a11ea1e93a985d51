"""Rotary position embedding as llama.cpp evaluates it, in the half-split order of Hugging Face checkpoints.

Knows the frequency rules (default, linear, llama3, yarn); not which layers rotate.
"""

from __future__ import annotations

import math

import torch

from .config import LiquidConfig


def _llama3_factors(inv_freq: torch.Tensor, scaling: dict) -> torch.Tensor:
    """The divisors stored as rope_freqs.weight. ref: Llama 3.1's scaling of low frequencies."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelen = 2 * math.pi / inv_freq
    context = scaling["original_max_position_embeddings"]
    smooth = (context / wavelen - low) / (high - low) if high != low else torch.zeros_like(wavelen)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelen < context / high, torch.ones_like(wavelen), between)
    return torch.where(wavelen > context / low, torch.full_like(wavelen, factor), factors)


def _yarn_mix(config: LiquidConfig, scaling: dict) -> torch.Tensor:
    """Share of the unscaled angle per feature pair. ref: YaRN, NTK-by-parts, range floored, ceiled, clamped."""
    dim, base = config.head_dim, config.rope_theta
    context = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    pair_at = lambda turns: dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))  # noqa: E731
    low = max(0, math.floor(pair_at(scaling.get("beta_fast") or 32.0)))
    high = min(dim - 1, math.ceil(pair_at(scaling.get("beta_slow") or 1.0)))
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    return 1 - ((pairs - low) / max(0.001, high - low)).clamp(0, 1)


def frequencies(config: LiquidConfig, *, windowed: bool = False) -> tuple[torch.Tensor, float]:
    """Angle per position for each feature pair [head_dim/2], and the factor on cos and sin."""
    dim, scaling = config.head_dim, config.rope_scaling or {}
    own_base = config.rope_local_base_freq if windowed else None
    inv_freq = (own_base or config.rope_theta) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if own_base:
        return inv_freq, 1.0
    if config.rope_type == "linear":
        return inv_freq / scaling["factor"], 1.0
    if config.rope_type == "llama3":
        return inv_freq / _llama3_factors(inv_freq, scaling), 1.0
    if config.rope_type == "yarn":
        factor, mix = scaling["factor"], _yarn_mix(config, scaling)
        magnitude = scaling.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
        return inv_freq / factor * (1 - mix) + inv_freq * mix, magnitude
    return inv_freq, 1.0


def llama3_factors(config: LiquidConfig) -> torch.Tensor | None:
    """rope_freqs.weight of the GGUF [head_dim/2], or None."""
    if config.rope_type != "llama3":
        return None
    inv_freq = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    return _llama3_factors(inv_freq, config.rope_scaling).float()


def rope_tables(
    config: LiquidConfig, positions: torch.Tensor, *, windowed: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for each position, [T, head_dim/2] each."""
    per_position, magnitude = frequencies(config, windowed=windowed)
    angles = positions.double()[:, None] * per_position.to(positions.device)  # [T, head_dim/2]
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)  # [B, n_head, T, head_dim/2] each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
