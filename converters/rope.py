"""Rotary embedding from config.json to GGUF's keys: base, scaling, magnitude.

Knows the rules default, linear, dynamic, llama3, yarn and longrope in transformers' old spelling (rope_scaling,
rope_theta) and new (rope_parameters). Tensors of frequencies are `.rope_factors`'. Does not know layouts of q and k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from liquidcli.errors import IntegrityError, LiquidError, quote

from . import fields
from .config import Config
from .fields import Field

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
OLD_NAMES = {"su": "longrope"}
LLAMA_CPP_BETAS = (32.0, 1.0)


@dataclass(frozen=True)
class Rope:
    theta: float
    kind: str = "default"  # or `factors`: yarn that llama.cpp cannot compute, given as frequencies
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    attention_factor: float | None = None  # yarn, as config.json says it
    magnitude: float = 1.0  # yarn and longrope: what cos and sin are multiplied by
    extrapolation_factor: float | None = None  # yarn
    truncate: bool = True  # yarn: the corrected dimensions are whole numbers
    long_factor: tuple[float, ...] = ()  # longrope
    short_factor: tuple[float, ...] = ()  # longrope

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta_fast or LLAMA_CPP_BETAS[0], self.beta_slow or LLAMA_CPP_BETAS[1]

    @property
    def needs_factors(self) -> bool:
        """Whether the file's tensors, not its keys alone, say how to rotate."""
        return self.kind in ("llama3", "factors", "longrope")

    def computable(self, *, reads_betas: bool) -> Rope:
        """The same rotation for a graph that knows yarn, but perhaps only llama.cpp's own betas."""
        known = self.truncate and (reads_betas or self.betas == LLAMA_CPP_BETAS)
        return self if self.kind != "yarn" or known else replace(self, kind="factors")


def read_rope(config: Config, default_theta: float = 10000.0, *, longrope: bool = False) -> Rope:
    """`longrope`: whether the architecture has the tensors of both its contexts."""
    section = config.section("rope_scaling") or config.section("rope_parameters") or Config({}, "rope_scaling")
    if (inner := section.section("full_attention")) is not None:
        section.only("sliding_attention", inner.values, why="one rotation for all layers was expected")
        section = inner
    return read_section(config, section, config.positive("rope_theta", default_theta), longrope=longrope)


def read_section(config: Config, section: Config, default_theta: float, *, longrope: bool = False) -> Rope:
    """One rotation; `config` is the whole configuration, for what stands outside."""
    theta = section.positive("rope_theta", default_theta)
    config.only("partial_rotary_factor", 1, 1.0, why="the rotation covers the whole head")
    section.only("partial_rotary_factor", 1, 1.0, why="the rotation covers the whole head")
    kind = section.raw("rope_type", section.raw("type", "default"))
    kind = OLD_NAMES.get(kind.lower(), kind.lower()) if isinstance(kind, str) else kind
    if kind not in KINDS or (kind == "longrope" and not longrope):
        raise LiquidError(f"{section.where}: rope_type {quote(kind)} is not supported, only {', '.join(KINDS)} are")
    if kind == "default":
        return Rope(theta)
    original = config.integer("original_max_position_embeddings", None, high=(1 << 31) - 1)
    inner = section.integer("original_max_position_embeddings", None, high=(1 << 31) - 1)
    original = original or inner or config.integer("max_position_embeddings", None, high=(1 << 31) - 1) or 0
    return _READERS[kind](config, section, theta, original)


def _factor(section: Config, default: float | None = None) -> float:
    return section.number("factor", *(() if default is None else (default,)), low=1e-3, high=1e6)


def _linear(config: Config, section: Config, theta: float, original: int) -> Rope:
    return Rope(theta, "linear", _factor(section))


def _dynamic(config: Config, section: Config, theta: float, original: int) -> Rope:
    return Rope(theta, "dynamic", _factor(section), config.integer("max_position_embeddings", 0, high=(1 << 31) - 1))


def _llama3(config: Config, section: Config, theta: float, original: int) -> Rope:
    if not original:
        raise IntegrityError(f"{section.where} has no original_max_position_embeddings")
    low, high = section.positive("low_freq_factor"), section.positive("high_freq_factor")
    if low > high:  # equal in Llama 4: no band between them
        raise IntegrityError(f"{section.where}: low_freq_factor {low} is above high_freq_factor {high}")
    return Rope(theta, "llama3", _factor(section), original, low, high)


def _yarn(config: Config, section: Config, theta: float, original: int) -> Rope:
    if not original or theta <= 1:
        raise IntegrityError(f"{section.where}: yarn needs original_max_position_embeddings and a rope_theta above 1")
    factor = _factor(section)
    given = section.positive("attention_factor", None) or section.positive("attn_factor", None)
    scales = section.number("mscale", 0.0), section.number("mscale_all_dim", 0.0)
    both = scales if all(scales) else (1.0, 0.0)
    return Rope(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=section.positive("beta_fast", None),
        beta_slow=section.positive("beta_slow", None),
        attention_factor=given,
        magnitude=given or _mscale(factor, both[0]) / _mscale(factor, both[1]),
        extrapolation_factor=section.number("extrapolation_factor", None),
        truncate=section.flag("truncate", True),
    )


def _mscale(factor: float, scale: float) -> float:  # ref: YaRN, sqrt(1/t) = 0.1 ln(s) + 1
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(config: Config, section: Config, theta: float, original: int) -> Rope:
    if original < 2:
        raise IntegrityError(f"{section.where} has no original_max_position_embeddings")
    factor = _factor(section, config.integer("max_position_embeddings", original) / original)
    own = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0  # ref: LongRoPE
    return Rope(
        theta,
        "longrope",
        factor,
        original,
        magnitude=section.positive("attention_factor", own),
        long_factor=section.items("long_factor", float),
        short_factor=section.items("short_factor", float),
    )


_READERS = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def rope_fields(rope: Rope, arch: str) -> list[Field]:
    key = f"{arch}.rope."
    found = [fields.f32(key + "freq_base", rope.theta)]
    if rope.kind in ("linear", "yarn", "longrope"):
        found.append(fields.string(key + "scaling.type", rope.kind))
    if rope.kind in ("linear", "yarn"):
        found.append(fields.f32(key + "scaling.factor", rope.factor))
    if rope.kind in ("yarn", "longrope"):
        found.append(fields.u32(key + "scaling.original_context_length", rope.original_context))
    optional: dict[str, float | None] = {"attn_factor": _attn_factor(rope)}
    if rope.kind == "yarn":
        optional = {
            "yarn_ext_factor": rope.extrapolation_factor,
            "yarn_attn_factor": rope.attention_factor,
            "yarn_beta_fast": rope.beta_fast,
            "yarn_beta_slow": rope.beta_slow,
            **optional,
        }
    found += [fields.f32(f"{key}scaling.{name}", value) for name, value in optional.items() if value is not None]
    return found


def _attn_factor(rope: Rope) -> float | None:
    """What llama.cpp must multiply by itself: with yarn beyond the magnitude that it computes from the factor.

    It reads this key, not yarn_attn_factor, outside of grok.
    """
    own = _mscale(rope.factor, 1.0) if rope.kind == "yarn" else 1.0
    return None if math.isclose(rope.magnitude, own, rel_tol=1e-6) else rope.magnitude / own


def rope_warnings(rope: Rope) -> list[str]:
    """Where llama.cpp decides otherwise than transformers."""
    n_tokens = rope.original_context
    told = {
        "dynamic": f"past {n_tokens} tokens a dynamic rope_type would change its frequencies, llama.cpp does not",
        "longrope": f"llama.cpp takes longrope's long factors in a context of more than {n_tokens} tokens, even if few "
        "of them are used",
    }
    return [told[rope.kind]] if rope.kind in told else []
