"""Rotary embedding from GGUF back to config.json's `rope_parameters`.

Knows the rules default, linear, llama3 and yarn. llama3 has no keys: its parameters are found from the tensor
rope_freqs.weight and count only if they give that tensor again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from liquidcli.errors import LiquidError

from ..rope import Rope
from ..rope_factors import rope_tensors
from .keys import Keys

FACTORS = "rope_freqs.weight"
_USUAL_CONTEXT, _USUAL_LOW, _USUAL_HIGH = 8192, 1.0, 4.0  # ref: Llama 3.1
_CLOSE = 1e-5
_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def rope_parameters(keys: Keys, head_dim: int, default_theta: float = 10000.0) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", default_theta)
    if keys.integer("rope.dimension_count", head_dim) != head_dim:
        raise keys.wrong("rope.dimension_count", keys.raw("rope.dimension_count"), f"the whole head, {head_dim}")
    kind = keys.word("rope.scaling.type", "none")
    scale = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    found: dict[str, Any] = {"rope_theta": shortest(theta), "rope_type": "default"}
    if FACTORS in keys.file.tensors:
        return found | _llama3(keys, theta, head_dim)
    if kind == "linear":
        return found | {"rope_type": "linear", "factor": shortest(scale)}
    if kind == "yarn":
        return found | _yarn(keys, scale)
    if kind != "none":
        raise LiquidError(f"{keys.file.path}: rope.scaling.type {kind!r} is not exported, linear and yarn are")
    return found


def shortest(value: float) -> float:
    """The decimal with the fewest digits that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _yarn(keys: Keys, factor: float) -> dict[str, Any]:
    context = keys.integer("rope.scaling.original_context_length")
    found = {"rope_type": "yarn", "factor": shortest(factor), "original_max_position_embeddings": context}
    for name, key in _YARN.items():
        if (value := keys.number(f"rope.scaling.{key}", None)) is not None:
            found[name] = shortest(value)
    own = keys.number("rope.scaling.yarn_attn_factor", None)
    over_default = keys.number("rope.scaling.attn_factor", None)
    if own is None and over_default is not None:
        own = over_default * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return found if own is None else {**found, "attention_factor": shortest(own)}


def _llama3(keys: Keys, theta: float, head_dim: int) -> dict[str, Any]:
    factors = keys.file.array(FACTORS)
    for rope in (_usual(factors, theta), _solved(factors, theta, head_dim)):
        made = rope and rope_tensors(rope, head_dim).get(FACTORS)
        if made is not None and made.shape == factors.shape and np.allclose(made, factors, rtol=_CLOSE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": shortest(rope.factor),
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
    raise LiquidError(f"{keys.file.path}: {FACTORS} does not follow Llama 3's rule, the only one that is exported")


def _usual(factors: np.ndarray, theta: float) -> Rope:
    return Rope(theta, "llama3", float(factors.max()), _USUAL_CONTEXT, _USUAL_LOW, _USUAL_HIGH)


def _solved(factors: np.ndarray, theta: float, head_dim: int) -> Rope | None:
    """Where 1/factor runs from 1/F to 1 it is a line in 1/wavelen; low_freq_factor is 1 by choice of the context."""
    largest = float(factors.max())
    wavelen = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    between = (factors > 1) & (factors < largest)
    if largest <= 1 or between.sum() < 2:
        return None
    slope, base = np.polyfit(1 / wavelen[between], 1 / factors[between].astype(np.float64), 1)
    rise = 1 - 1 / largest
    width = rise / (1 / largest - base) if base < 1 / largest else 0.0  # high - low, in units of low
    if not 0 < width < 1e6:
        return None
    context = round(slope * width / rise)
    return Rope(theta, "llama3", largest, context, 1.0, round(1 + width, 4)) if 0 < context < 1 << 30 else None
