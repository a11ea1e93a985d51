"""Router-Tuning (MindSkip), one vector a gated layer, to GGUF architecture `liquid`.

`model.layers.{i}.router.weight` [1, h] beside a plain Llama, Mistral, Qwen2 or Qwen3; `granularity` tells what it
switches. Attention is computed for all tokens, so K and V are always there; only its sum into the state is switched.
The published code runs at w >= threshold and reads input_layernorm, whatever is switched. ref: arXiv 2410.13184
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from liquidcli.errors import IntegrityError, LiquidError

from ..config import MAX_LAYERS, Config
from ..depth import Names
from ..gated_base import base_words
from ..registry import arch
from .liquid import Liquid

SCOPES = {"attn": "attn", "mlp": "ffn", "block": "layer"}
TRAINING = ("mod_capacity", "gradient_scale", "train_threshold")
ROUTER = re.compile(r"model\.layers\.(\d+)\.router\.weight")
BASES = {"Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3"}


def has_routers(config: dict[str, Any], present: Collection[str]) -> bool:
    """A plain model's name with routers beside it: the trainer patches the model and keeps its name."""
    return any(ROUTER.fullmatch(name) for name in present)


@arch(*(f"{base}{kind}ForCausalLM" for base in BASES for kind in ("MoD", "MindSkip")))
@arch(*(f"{base}ForCausalLM" for base in BASES), when=has_routers)
class MindSkip(Liquid):
    names = Names(head="router.weight", bias="router.bias")
    dense_module = "mlp"

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        self.granularity = _granularity(config)
        for name in TRAINING:
            config.raw(name)
        words = {**base_words(config, _base(config)), "depth": _depth(config, present, self.granularity)}
        super().__init__(config.extended(words), present, exact_gate=exact_gate)

    def warnings(self) -> list[str]:
        found = super().warnings()
        if self.granularity == "mlp":
            found.append(
                "granularity mlp_token became `ffn` gates, which read post_attention_layernorm after attention; a "
                "router trained on input_layernorm, as the published code trains it, decides differently there"
            )
        return found


def _base(config: Config) -> str:
    name = next(one for one in config.raw("architectures") if one.startswith(tuple(BASES)))
    return next(base for prefix, base in BASES.items() if name.startswith(prefix))


def _granularity(config: Config) -> str:
    """What a token's decision switches: attn, mlp or block. The trainer's rules of reading, its default included."""
    text = config.raw("granularity", "attn_sequence")
    words = str(text).lower().replace("-", "_")
    if "token" not in words:
        raise LiquidError(
            f"config.json: granularity is {text!r:.40}: one decision for a whole sequence, from the mean over all its "
            "tokens, cannot be known when the first of them is computed",
            hint="only routers per token convert: attn_token, mlp_token, block_token",
        )
    return next((target for target in ("block", "mlp") if target in words), "attn")


def _depth(config: Config, present: Collection[str], granularity: str) -> dict[str, Any]:
    n_layer = config.integer("num_hidden_layers", high=MAX_LAYERS)
    routed = {int(match[1]) for name in present if (match := ROUTER.fullmatch(name))}
    gated = config.raw("is_mod", [layer in routed for layer in range(n_layer)])
    flags = isinstance(gated, list) and len(gated) == n_layer and all(flag in (0, 1) for flag in gated)
    if not flags or not any(gated):
        raise IntegrityError(f"config.json: is_mod and the routers do not name some of the {n_layer} layers")
    return {
        "gate_kind": "linear",
        "gate_span": [int(flag) for flag in gated],
        "gate_scope": [SCOPES[granularity] if flag else "layer" for flag in gated],
        "threshold": _just_below(config.number("threshold", 0.5, high=1.0)),
    }


def _just_below(threshold: float) -> float:
    """w > this exactly where w >= threshold, in float32."""
    return float(np.nextafter(np.float32(threshold), np.float32(0)))
