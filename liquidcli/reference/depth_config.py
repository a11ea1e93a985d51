"""DepthConfig: the object `depth` of config.json, and the gates it describes, in their one order. No tensors."""

from __future__ import annotations

from dataclasses import dataclass

from liquidcli.errors import IntegrityError

GATE_KINDS = ("linear", "bottleneck")
KV_POLICIES = ("project", "drop")
# gate_scope -> what each gate of the layer switches, in order
GATE_SCOPES = {"layer": ("layer",), "attn": ("attn",), "ffn": ("ffn",), "attn+ffn": ("attn", "ffn")}
MODULES = {"layer": "depth_gate", "attn": "depth_gate_attn", "ffn": "depth_gate_ffn"}


def require(ok: bool, what: str) -> None:
    if not ok:
        raise IntegrityError(f"config.json: {what}")


@dataclass(frozen=True)
class GatePlace:
    """Where one gate sits and what it switches: `span` layers from `layer` on, or a half of `layer`."""

    layer: int
    span: int
    scope: str  # layer, attn, ffn
    is_exit: bool

    @property
    def module(self) -> str:
        return MODULES[self.scope]


@dataclass(frozen=True)
class DepthConfig:
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
    adapter_size: int = 0  # 0: a skipped span leaves h as it is
    gate_rank: int = 0  # bottleneck only
    gate_bias: bool = False
    gate_folded: bool = False

    def __post_init__(self) -> None:
        for name in ("gate_span", "gate_scope", "gate_exit"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
                require(len(value) == len(self.gate_span), f"depth.{name}: expected one entry per layer")
        require(self.gate_kind in GATE_KINDS, f"depth.gate_kind is {self.gate_kind!r}, expected one of {GATE_KINDS}")
        require(self.kv_policy in KV_POLICIES, f"depth.kv_policy is {self.kv_policy!r}, expected one of {KV_POLICIES}")
        require(
            all(s in GATE_SCOPES for s in self.gate_scope or ()),
            f"depth.gate_scope has other values than {tuple(GATE_SCOPES)}",
        )
        require(
            self.gate_kind != "bottleneck" or self.gate_rank > 0,
            "depth.gate_rank must be positive for bottleneck gates",
        )
        self._check_spans()

    def _check_spans(self) -> None:
        free_from = 0  # an exit's span may hold other gates, an ordinary span may not
        for layer, span in enumerate(self.gate_span):
            scope, is_exit, end = self.scope(layer), self.is_exit(layer), layer + span
            if not span:
                require(scope == "layer" and not is_exit, f"depth: layer {layer} has a scope or an exit but no gate")
                continue
            where = f"depth.gate_span: the gate at layer {layer}"
            require(span > 0, f"{where} spans {span} layers")
            require(layer >= free_from, f"{where} lies inside an earlier span")
            require(end <= len(self.gate_span), f"depth.gate_span: the span at layer {layer} ends after the last layer")
            require(scope == "layer" or (span == 1 and not is_exit), f"{where} switches halves: span 1 and no exit")
            require(not is_exit or end == len(self.gate_span), f"{where} is an exit and must span all that remains")
            free_from = free_from if is_exit else end

    def scope(self, layer: int) -> str:
        return self.gate_scope[layer] if self.gate_scope else "layer"

    def is_exit(self, layer: int) -> bool:
        return bool(self.gate_exit and self.gate_exit[layer])

    def has_adapter(self, layer: int) -> bool:
        return bool(self.adapter_size and self.gate_span[layer]) and not (
            self.is_exit(layer) or self.scope(layer) == "attn"
        )

    def gates_at(self, layer: int) -> tuple[GatePlace, ...]:
        if not self.gate_span[layer]:
            return ()
        scopes = GATE_SCOPES[self.scope(layer)]
        return tuple(GatePlace(layer, self.gate_span[layer], scope, self.is_exit(layer)) for scope in scopes)

    @property
    def gates(self) -> tuple[GatePlace, ...]:
        """By layer, attention before feed-forward: the order of traces and forced tables."""
        return tuple(gate for layer in range(len(self.gate_span)) for gate in self.gates_at(layer))
