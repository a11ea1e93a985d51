"""Rotary embedding from GGUF back to config.json's `rope_parameters`.

Knows the rules default, linear, yarn, longrope and llama3. llama3 has no keys: its parameters are found from the tensor
rope_freqs.weight and count only if they give that tensor again; any other divisors are given as they are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from liquidcli.errors import IntegrityError, LiquidError, quote

from ..rope import Rope
from ..rope_factors import rope_tensors
from .keys import Keys

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_USUAL_CONTEXT, _USUAL_LOW, _USUAL_HIGH = 8192, 1.0, 4.0  # ref: Llama 3.1
CLOSE = 1e-5
_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def rope_parameters(keys: Keys, head_dim: int, default_theta: float = 10000.0) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", default_theta)
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise keys.wrong("rope.dimension_count", keys.raw("rope.dimension_count"), f"the whole head, {head_dim}")
    scale = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    kind = keys.word("rope.scaling.type", "linear" if scale not in (0.0, 1.0) else "none")  # as llama.cpp takes it
    keys.flag("rope.scaling.finetuned", False)
    magnitude = keys.number("rope.scaling.attn_factor", None)
    found: dict[str, Any] = {"rope_theta": shortest(theta), "rope_type": "default"}
    divisors = next((name for name in (FACTORS, LONG, SHORT) if name in keys.file.tensors), None)
    if divisors and (kind == "yarn" or (kind == "linear" and scale not in (0.0, 1.0))):
        raise LiquidError(f"{keys.file.path}: {divisors} beside rope.scaling.type {quote(kind)} is not exported")
    if kind == "yarn":
        return found | _yarn(keys, scale, magnitude)
    if LONG in keys.file.tensors or SHORT in keys.file.tensors:
        context = keys.integer("rope.scaling.original_context_length")
        return found | _given(
            keys, _divisors(keys, LONG, head_dim), _divisors(keys, SHORT, head_dim), context, magnitude
        )
    if FACTORS in keys.file.tensors:
        factors = _divisors(keys, FACTORS, head_dim)
        ruled = None if magnitude is not None else _llama3(factors, theta, head_dim)
        return found | (ruled or _given(keys, factors, factors, keys.integer("context_length"), magnitude))
    if kind == "linear" and magnitude is None:
        return found | {"rope_type": "linear", "factor": shortest(scale)}
    if kind != "none" or magnitude is not None:
        raise LiquidError(f"{keys.file.path}: rope.scaling.type {quote(kind)} is not exported as it stands there")
    return found


def _divisors(keys: Keys, name: str, head_dim: int) -> np.ndarray:
    found = keys.file.array(name)
    if found.shape != (head_dim // 2,):
        raise IntegrityError(f"{keys.file.path}: {name} has the shape {list(found.shape)}, expected [{head_dim // 2}]")
    return found


def shortest(value: float) -> float:
    """The decimal with the fewest digits that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _yarn(keys: Keys, factor: float, magnitude: float | None) -> dict[str, Any]:
    context = keys.integer("rope.scaling.original_context_length")
    found = {"rope_type": "yarn", "factor": shortest(factor), "original_max_position_embeddings": context}
    for name, key in _YARN.items():
        if (value := keys.number(f"rope.scaling.{key}", None)) is not None:
            found[name] = shortest(value)
    own = keys.number("rope.scaling.yarn_attn_factor", None)
    if own is None and magnitude is not None:
        own = magnitude * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return found if own is None else {**found, "attention_factor": shortest(own)}


def _given(keys: Keys, long: np.ndarray, short: np.ndarray, context: int, magnitude: float | None) -> dict[str, Any]:
    """Divisors as they are: transformers' longrope takes any, and the same for both lengths where there are no two."""
    return {
        "rope_type": "longrope",
        "factor": keys.integer("context_length") / context,
        "long_factor": [shortest(one) for one in long],
        "short_factor": [shortest(one) for one in short],
        "original_max_position_embeddings": context,
        "attention_factor": 1.0 if magnitude is None else shortest(magnitude),
    }


def _llama3(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any] | None:
    """None where no parameters give these divisors."""
    largest = float(factors.max())
    usual = Rope(theta, "llama3", largest, _USUAL_CONTEXT, _USUAL_LOW, _USUAL_HIGH)
    for rope in (usual, *_solved(factors, theta, head_dim)):
        made = rope_tensors(rope, head_dim)[FACTORS]
        if made.shape == factors.shape and np.allclose(made, factors, rtol=CLOSE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": shortest(rope.factor),
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
    return None


def _solved(factors: np.ndarray, theta: float, head_dim: int) -> list[Rope]:
    """Where 1/factor runs from 1/F to 1 it is a line in 1/wavelen; low_freq_factor is 1 by choice of the context."""
    largest = float(factors.max())
    wavelen = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    if largest <= 1:
        return []
    between = (factors > 1) & (factors < largest)
    rise = 1 - 1 / largest
    smooth = (1 / factors.astype(np.float64) - 1 / largest) / rise  # 0 at the context's length, 1 at high's
    if between.sum() >= 2:
        slope, base = np.polyfit(1 / wavelen[between], smooth[between], 1)
        pairs = [(-slope / base, 1 - 1 / base)] if base < 0 else []  # smooth = (context / wavelen - 1) / (high - 1)
    else:
        pairs = _in_the_gap(wavelen, smooth)
    return [
        Rope(theta, "llama3", largest, round(context), 1.0, round(high, 6))
        for context, high in pairs
        if 0.5 < context < 1 << 30 and 1 < high < 1e6
    ]


def _in_the_gap(wavelen: np.ndarray, smooth: np.ndarray) -> list[tuple[float, float]]:
    """One divisor or none between the ends fixes no line: any that passes will do."""
    shortest_scaled = float(wavelen[smooth <= 0].min(initial=math.inf))
    longest_kept = float(wavelen[smooth >= 1].max(initial=0.0))
    inside = np.flatnonzero((smooth > 0) & (smooth < 1))
    first = float(wavelen[inside[0]]) if inside.size else longest_kept
    last = min(shortest_scaled, 16 * max(first, 1.0))
    pairs: list[tuple[float, float]] = []
    for share in (0.5, 0.25, 0.75, 0.9, 0.1, 0.02):
        context = round(first + share * (last - first))
        if inside.size:
            pairs.append((context, 1 + (context / first - 1) / float(smooth[inside[0]])))
        elif longest_kept:
            pairs.append((context, 2 * context / (longest_kept + context)))
    return pairs
