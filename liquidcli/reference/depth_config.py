"""DepthConfig: the object `depth` of config.json. No tensors."""

from __future__ import annotations

from dataclasses import dataclass

from liquidcli.errors import IntegrityError
from liquidcli.gate_layout import GATE_KINDS, KV_POLICIES, DepthKeys, GatePlace


def require(ok: bool, what: str) -> None:
    if not ok:
        raise IntegrityError(f"config.json: {what}")


@dataclass(frozen=True)
class DepthConfig(DepthKeys):
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

    def has_adapter(self, layer: int) -> bool:
        return bool(self.adapter_size) and self.layout.has_adapter(layer)

    def gates_at(self, layer: int) -> tuple[GatePlace, ...]:
        return self.layout.at(layer)

    @property
    def gates(self) -> tuple[GatePlace, ...]:
        return self.layout.gates()
