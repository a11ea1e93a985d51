"""FlexiDepth over Llama (`ddllama`) to GGUF architecture `liquid`.

A Llama whose layers `routing_layers` carry a bottleneck gate and an adapter: span 1, K and V always projected, both
branches scaled by the gate, threshold 0.5. The adapter's `down_proj` is hidden -> m, its `up_proj` is m -> hidden.
ref: arXiv 2503.23798
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from liquidcli.errors import IntegrityError

from ..config import MAX_LAYERS, Config
from ..depth import Names
from ..gated_base import base_words
from ..registry import arch
from .liquid import Liquid

NAMES = Names(
    enc="router.router_enc.weight",
    norm="router.router_norm.weight",
    dec="router.router_dec.weight",
    head="router.router_head.weight",
    bias="router.router_head.bias",
    skip_gate="router_proj.gate_proj.weight",
    skip_up="router_proj.down_proj.weight",
    skip_down="router_proj.up_proj.weight",
)


@arch("DDLlamaForCausalLM")
class DDLlama(Liquid):
    names = NAMES
    dense_module = "mlp"
    base = "llama"

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool = False) -> None:
        config.only("router_force_mode", "none", "auto", why="the gates decide; liquid run --depth full runs them all")
        config.only("router_gate_mode", "ste_hard", "hard", why="a layer runs or it does not")
        config.raw("router_head_bias_init")  # how training began; the tensors tell whether there is a bias
        words = {**base_words(config, self.base), "depth": _depth(config)}
        super().__init__(config.extended(words), present, exact_gate=exact_gate)


def _depth(config: Config) -> dict[str, Any]:
    n_layer = config.integer("num_hidden_layers", high=MAX_LAYERS)
    routed = config.items("routing_layers", int)
    if not routed or max(routed) >= n_layer or len(set(routed)) != len(routed):
        raise IntegrityError(f"config.json: routing_layers does not name some of the {n_layer} layers, each once")
    gate_reduction = config.integer("router_reduction_factor", 16)
    adapter_reduction = config.integer("proj_reduction_factor", gate_reduction)
    return {
        "gate_kind": "bottleneck",
        "gate_span": [int(layer in routed) for layer in range(n_layer)],
        "gate_rank": config.integer("hidden_size") // gate_reduction,
        "adapter_size": config.integer("intermediate_size") // adapter_reduction,
        "ffn_scaled_by_gate": True,
        "adapter_scaled_by_gate": True,
    }
