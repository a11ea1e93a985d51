"""Rotary embedding from config.json to GGUF: frequencies, scaling keys and the rope_freqs tensor.

Knows the rules default, linear, llama3 and yarn in transformers' old spelling (rope_scaling, rope_theta) and new
(rope_parameters). Does not know layouts of q and k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from liquidcli.errors import IntegrityError, LiquidError

from . import fields
from .config import Config
from .fields import Field

KINDS = ("default", "linear", "llama3", "yarn")
LLAMA_CPP_BETA_FAST, LLAMA_CPP_BETA_SLOW = 32.0, 1.0


@dataclass(frozen=True)
class Rope:
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    attention_factor: float | None = None  # yarn
    extrapolation_factor: float | None = None  # yarn


def read_rope(config: Config, default_theta: float = 10000.0) -> Rope:
    section = config.section("rope_parameters") or config.section("rope_scaling") or Config({}, "rope_scaling")
    if (inner := section.section("full_attention")) is not None:
        section.only("sliding_attention", inner.values, why="one rotation for all layers was expected")
        section = inner
    outer_theta = config.positive("rope_theta", default_theta)
    theta = section.positive("rope_theta", outer_theta)
    config.only("partial_rotary_factor", 1, 1.0, why="the rotation covers the whole head")
    section.only("partial_rotary_factor", 1, 1.0, why="the rotation covers the whole head")
    kind = section.raw("rope_type", section.raw("type", "default"))
    kind = kind.lower() if isinstance(kind, str) else kind
    if kind not in KINDS:
        raise LiquidError(f"{section.where}: rope_type {kind!r} is not supported, only {', '.join(KINDS)} are")
    if kind == "default":
        return Rope(theta)
    factor = section.number("factor", low=1e-3, high=1e6)
    original = section.integer("original_max_position_embeddings", None, high=1 << 30)
    original = original or config.integer("original_max_position_embeddings", None, high=1 << 30)
    if kind == "llama3":
        return _llama3(section, theta, factor, original)
    if kind == "yarn":
        return _yarn(config, section, theta, factor, original)
    return Rope(theta, kind, factor)


def _llama3(section: Config, theta: float, factor: float, original: int | None) -> Rope:
    if not original:
        raise IntegrityError(f"{section.where} has no original_max_position_embeddings")
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    if low >= high:
        raise IntegrityError(f"{section.where}: low_freq_factor {low} is not below high_freq_factor {high}")
    return Rope(theta, "llama3", factor, original, low, high)


def _yarn(config: Config, section: Config, theta: float, factor: float, original: int | None) -> Rope:
    for name in ("mscale", "mscale_all_dim"):
        section.only(name, why="a magnitude of its own is not part of this architecture")
    section.only("truncate", True, why="the range of corrected dimensions is floored and ceiled")
    original = original or config.integer("max_position_embeddings", high=1 << 30)
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=section.positive("beta_fast", None),
        beta_slow=section.positive("beta_slow", None),
        attention_factor=section.positive("attention_factor", None) or section.positive("attn_factor", None),
        extrapolation_factor=section.number("extrapolation_factor", None),
    )


def rope_fields(rope: Rope, arch: str) -> list[Field]:
    key = f"{arch}.rope."
    found = [fields.f32(key + "freq_base", rope.theta)]
    if rope.kind in ("linear", "yarn"):
        found.append(fields.string(key + "scaling.type", rope.kind))
        found.append(fields.f32(key + "scaling.factor", rope.factor))
    if rope.kind == "yarn":
        found.append(fields.u32(key + "scaling.original_context_length", rope.original_context))
        optional = {
            "yarn_ext_factor": rope.extrapolation_factor,
            "yarn_attn_factor": rope.attention_factor,
            "yarn_beta_fast": rope.beta_fast,
            "yarn_beta_slow": rope.beta_slow,
            "attn_factor": _magnitude_over_default(rope),
        }
        found += [fields.f32(f"{key}scaling.{name}", value) for name, value in optional.items() if value is not None]
    return found


def _magnitude_over_default(rope: Rope) -> float | None:
    """What llama.cpp must multiply YaRN's own magnitude by; it reads this key, not yarn_attn_factor, outside of grok.

    ref: YaRN, sqrt(1/t) = 0.1 ln(s) + 1
    """
    default = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    if rope.attention_factor is None or math.isclose(rope.attention_factor, default, rel_tol=1e-6):
        return None
    return rope.attention_factor / default


def rope_warnings(rope: Rope) -> list[str]:
    """For architectures whose graph leaves the betas at llama.cpp's own."""
    betas = (rope.beta_fast or LLAMA_CPP_BETA_FAST, rope.beta_slow or LLAMA_CPP_BETA_SLOW)
    if rope.kind == "yarn" and betas != (LLAMA_CPP_BETA_FAST, LLAMA_CPP_BETA_SLOW):
        return [f"YaRN's beta_fast {betas[0]:g} and beta_slow {betas[1]:g} are written, but llama.cpp uses 32 and 1"]
    return []


def rope_factors(rope: Rope, head_dim: int) -> np.ndarray | None:
    """Divisors of the frequencies [head_dim/2] float32, step by step as torch rounds them. ref: Llama 3.1."""
    if rope.kind != "llama3":
        return None
    one, two_pi, context = np.float32(1), np.float32(2 * math.pi), np.float32(rope.original_context)
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = (rope.theta ** exponent.astype(np.float64)).astype(np.float32)
    wavelen = one / (one / power) * two_pi
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (one / wavelen * context - np.float32(low)) / np.float32(high - low)
    with np.errstate(divide="ignore"):  # outside of the band this is not used
        between = one / ((one - smooth) / np.float32(rope.factor) + smooth)
    factors = np.where(wavelen < rope.original_context / high, one, between)
    return np.where(wavelen > rope.original_context / low, np.float32(rope.factor), factors).astype(np.float32)
