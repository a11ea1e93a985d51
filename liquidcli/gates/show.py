"""What gates a pack or a liquid model holds, as plain data: by layer, with span, scope, kind and adapter.

Knows how to read both kinds of file. Prints nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import NotFoundError
from ..gate_layout import GatePlace
from ..gguf_file import GGUFFile, open_gguf
from .pack import Depth, read_depth, read_pack


@dataclass(frozen=True)
class GateRow:
    """One gate; a layer whose halves have their own has two. `adapter_size` 0: a skip leaves the state as it is."""

    layer: int
    span: int
    scope: str
    is_exit: bool
    kind: str
    adapter_size: int
    adapter_type: str | None
    bias: float | None


@dataclass(frozen=True)
class GatesInfo:
    """A file's gates. `base` is the identity of the base a pack belongs to; None for a model. `n_updated` matrices of
    it are changed when the pack is applied, by updates of at most `rank`."""

    path: Path
    is_pack: bool
    name: str
    n_layer: int
    depth: Depth
    gates: tuple[GateRow, ...]
    base: dict[str, Any] | None
    size_bytes: int
    n_updated: int = 0
    rank: int = 0

    def as_json(self) -> dict[str, Any]:
        depth = asdict(self.depth)
        calibration = {
            "threshold": depth.pop("calibration_threshold"),
            "executed_fraction": depth.pop("calibration_executed_fraction"),
        }
        return {
            "file": str(self.path),
            "type": "pack" if self.is_pack else "model",
            "name": self.name,
            "size_bytes": self.size_bytes,
            "layers_total": self.n_layer,
            "base": self.base,
            "updates": {"matrices": self.n_updated, "rank": self.rank},
            "depth": {**depth, "calibration": calibration},
            "gates": [asdict(gate) for gate in self.gates],
        }


def describe_gates(path: Path | str) -> GatesInfo:
    """The gates of a pack or of a liquid model; NotFoundError for a file without any."""
    path = Path(path)
    with open_gguf(path) as f:
        is_pack = f.metadata.get("general.type") == "adapter"
        base, lora = None, {}
        if is_pack:
            pack = read_pack(path)
            lora = pack.lora
            depth, base, n_layer = pack.depth, pack.base.as_json(), pack.base.block_count
        elif "liquid.depth.gate_span" not in f.metadata:
            raise NotFoundError(
                f"{path} has no depth gates: it is a plain {f.architecture} model",
                hint="liquid gates apply BASE.gguf GATES.gguf -o OUT.gguf gives it some",
            )
        else:
            n_layer = f.block_count
            depth = read_depth(f, n_layer)
        rows = tuple(_row(f, depth, gate) for gate in depth.layout.gates())
        name, rank = str(f.metadata.get("general.name", "")), max((len(a) for a, _ in lora.values()), default=0)
        return GatesInfo(path, is_pack, name, n_layer, depth, rows, base, f.size_bytes, len(lora), rank)


def _row(f: GGUFFile, depth: Depth, gate: GatePlace) -> GateRow:
    adapter = f.tensors.get(f"blk.{gate.layer}.depth_skip_gate.weight") if gate.may_adapt else None
    bias = f"blk.{gate.layer}.{gate.stem}.bias"
    return GateRow(
        gate.layer,
        gate.span,
        gate.scope,
        gate.is_exit,
        depth.gate_kind,
        adapter.shape[1] if adapter else 0,
        adapter.type.name if adapter else None,
        float(f.array(bias)[0]) if bias in f.tensors else None,
    )
