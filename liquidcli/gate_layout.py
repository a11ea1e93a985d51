"""Where depth gates sit: the rules for spans, scopes and exits, and the gates they describe, in their one order.

Knows no file format; what reads one tells the fault in its own words' frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# gate_scope -> what each gate of the layer switches, in order
SCOPES = {"layer": ("layer",), "attn": ("attn",), "ffn": ("ffn",), "attn+ffn": ("attn", "ffn")}
GATE_KINDS = ("linear", "bottleneck")
KV_POLICIES = ("project", "drop")
STEMS = {"layer": "depth_gate", "attn": "depth_gate_attn", "ffn": "depth_gate_ffn"}


@dataclass(frozen=True)
class GatePlace:
    """Where one gate sits and what it switches: `span` layers from `layer` on, or a half of `layer`."""

    layer: int
    span: int
    scope: str  # layer, attn, ffn
    is_exit: bool

    @property
    def stem(self) -> str:
        """What its tensors' names begin with, in checkpoints and GGUF alike."""
        return STEMS[self.scope]

    @property
    def may_adapt(self) -> bool:
        return not self.is_exit and self.scope != "attn"


class GateLayout:
    """One value per layer each; None: `layer` everywhere, no exit. An empty scope means `layer` too."""

    def __init__(
        self, spans: Sequence[int], scopes: Sequence[str] | None = None, exits: Sequence[bool] | None = None
    ) -> None:
        self.spans = spans
        self.scopes = [scope or "layer" for scope in scopes or [""] * len(spans)]
        self.exits = [bool(is_exit) for is_exit in exits or [False] * len(spans)]

    def fault(self) -> str | None:
        """What is wrong first, as the end of a sentence."""
        if not len(self.spans) == len(self.scopes) == len(self.exits):
            return "gate_span, gate_scope and gate_exit have not one value for each layer"
        free_from = 0  # an exit's span may hold other gates, an ordinary span may not
        for layer, span in enumerate(self.spans):
            if isinstance(span, bool) or not isinstance(span, int) or not 0 <= span <= len(self.spans) - layer:
                return f"the gate at layer {layer} spans {span!r:.60} of {len(self.spans)} layers"
            if span and layer < free_from:
                return f"the gate at layer {layer} lies inside the span of the one before it"
            if fault := self._kind_fault(layer):
                return fault
            free_from = free_from if self.exits[layer] else max(free_from, layer + span)
        return None

    def _kind_fault(self, layer: int) -> str | None:
        span, scope, is_exit = self.spans[layer], self.scopes[layer], self.exits[layer]
        if scope not in SCOPES:
            return f"the gate at layer {layer} has the scope {scope!r:.60}, layer, attn, ffn or attn+ffn was expected"
        if not span and (is_exit or scope != "layer"):
            return f"layer {layer} has a scope or an exit but no gate"
        if scope != "layer" and (span > 1 or is_exit):
            return f"the gate at layer {layer} has the scope {scope!r}, so it must have span 1 and be no exit"
        if is_exit and layer + span != len(self.spans):
            return f"the gate at layer {layer} is an exit and spans {span} layers, all that remain were expected"
        return None

    def at(self, layer: int) -> tuple[GatePlace, ...]:
        if not self.spans[layer]:
            return ()
        return tuple(GatePlace(layer, self.spans[layer], s, self.exits[layer]) for s in SCOPES[self.scopes[layer]])

    def gates(self) -> tuple[GatePlace, ...]:
        """By layer, attention before feed-forward: the order of traces and forced tables."""
        return tuple(gate for layer in range(len(self.spans)) for gate in self.at(layer))

    def has_adapter(self, layer: int) -> bool:
        """Whether one may be there."""
        return any(gate.may_adapt for gate in self.at(layer))


@dataclass(frozen=True)
class DepthKeys:
    """What config.json, GGUF and gate packs say about depth under the same names; each adds its own."""

    gate_span: tuple[int, ...]  # one per layer: 0 = no gate here, s = a gate here governs s layers
    gate_kind: str = "linear"
    gate_scope: tuple[str, ...] | None = None
    gate_exit: tuple[bool, ...] | None = None
    threshold: float = 0.5
    kv_policy: str = "project"
    ffn_scaled_by_gate: bool = False
    adapter_scaled_by_gate: bool = False
    min_layers: int = 0
    always_run_tokens: int = 0

    @property
    def layout(self) -> GateLayout:
        return GateLayout(self.gate_span, self.gate_scope, self.gate_exit)
