"""Tensors that rotate: divisors of the frequencies, where keys alone cannot say them.

Knows llama3, yarn with everything it can be told, and longrope. Computes in the order torch does where bytes matter.
"""

from __future__ import annotations

import math

import numpy as np

from liquidcli.errors import IntegrityError

from .rope import Rope


def rope_tensors(rope: Rope, head_dim: int) -> dict[str, np.ndarray]:
    """GGUF name -> divisors [head_dim/2] float32; empty where the keys say it all."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": _llama3(rope, head_dim)}
    if rope.kind == "factors":
        return {"rope_freqs.weight": _yarn(rope, head_dim)}
    if rope.kind == "longrope":
        return {
            "rope_factors_long.weight": _given(rope.long_factor, "long_factor", head_dim),
            "rope_factors_short.weight": _given(rope.short_factor, "short_factor", head_dim),
        }
    return {}


def _given(values: tuple[float, ...], name: str, head_dim: int) -> np.ndarray:
    if len(values) != head_dim // 2 or min(values) <= 0:
        raise IntegrityError(f"config.json: {name} has {len(values)} values, expected {head_dim // 2} positive ones")
    return np.array(values, np.float32)


def _llama3(rope: Rope, head_dim: int) -> np.ndarray:  # ref: Llama 3.1
    one, two_pi, context = np.float32(1), np.float32(2 * math.pi), np.float32(rope.original_context)
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = (rope.theta ** exponent.astype(np.float64)).astype(np.float32)
    wavelen = one / (one / power) * two_pi
    low, high = rope.low_freq_factor, rope.high_freq_factor
    with np.errstate(divide="ignore", invalid="ignore"):  # outside of the band this is not used
        smooth = (one / wavelen * context - np.float32(low)) / np.float32(high - low)
        between = one / ((one - smooth) / np.float32(rope.factor) + smooth)
    factors = np.where(wavelen < rope.original_context / high, one, between)
    return np.where(wavelen > rope.original_context / low, np.float32(rope.factor), factors).astype(np.float32)


def _yarn(rope: Rope, head_dim: int) -> np.ndarray:
    """ref: YaRN, 3.2: a ramp between the dimensions that turn beta_fast and beta_slow times in the original context."""
    ends = [_dimension(rope, head_dim, turns) for turns in rope.betas]
    if rope.truncate:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    low, high = max(ends[0], 0), min(ends[1], head_dim - 1)
    ramp = ((np.arange(head_dim // 2) - low) / (high - low if high != low else 0.001)).clip(0, 1)
    return (1 / (ramp / rope.factor + (1 - ramp))).astype(np.float32)


def _dimension(rope: Rope, head_dim: int, turns: float) -> float:
    return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
