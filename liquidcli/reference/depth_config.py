"""DepthConfig: the object `depth` of config.json. No tensors."""

from __future__ import annotations

from dataclasses import dataclass

from liquidcli.errors import IntegrityError
from liquidcli.gate_layout import GateLayout, GatePlace

GATE_KINDS = ("linear", "bottleneck")
KV_POLICIES = ("project", "drop")

def require(ok: bool, what: str) -> None:
    if not ok:
        raise IntegrityError(f"config.json: {what}")


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
        require(self.gate_kind in GATE_KINDS, f"depth.gate_kind is {self.gate_kind!r}, expected one of {GATE_KINDS}")
        require(self.kv_policy in KV_POLICIES, f"depth.kv_policy is {self.kv_policy!r}, expected one of {KV_POLICIES}")
        require(
            self.gate_kind != "bottleneck" or self.gate_rank > 0,
            "depth.gate_rank must be positive for bottleneck gates",
        )
        fault = self.layout.fault()
        require(fault is None, f"depth: {fault}")

    @property
    def layout(self) -> GateLayout:
        return GateLayout(self.gate_span, self.gate_scope, self.gate_exit)

    def has_adapter(self, layer: int) -> bool:
        return bool(self.adapter_size) and self.layout.has_adapter(layer)

    def gates_at(self, layer: int) -> tuple[GatePlace, ...]:
        return self.layout.at(layer)

    @property
    def gates(self) -> tuple[GatePlace, ...]:
        return self.layout.gates()
