"""Depth gates of a checkpoint: the object `depth` of config.json, its tensors' rows, and the `liquid.depth.*` keys.

Knows both gate kinds, spans, scopes, exits and adapters, and folds a bottleneck's last two matrices into one vector.
Does not know the layers around them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError
from liquidcli.gate_layout import GATE_KINDS, KV_POLICIES, DepthKeys

from . import fields
from .config import Config
from .fields import Field
from .tensors import GATE_ROLE, Row, Target, row
from .transforms import FLATTEN, FOLD, SAME, padded

VERSION = 1
ADAPTER_MULTIPLE = 32


@dataclass(frozen=True)
class Names:
    """How a family of checkpoints calls the parts, below `model.layers.{i}.`; `{stem}` is the gate's."""

    enc: str = "{stem}.enc.weight"
    norm: str = "{stem}.norm.weight"
    dec: str = "{stem}.dec.weight"
    head: str = "{stem}.head.weight"
    bias: str = "{stem}.head.bias"
    skip_gate: str = "depth_adapter.gate_proj.weight"
    skip_up: str = "depth_adapter.up_proj.weight"  # hidden -> m, the multiplicand
    skip_down: str = "depth_adapter.down_proj.weight"  # m -> hidden, the output

    def part(self, part: str, stem: str) -> str:
        return "model.layers.{i}." + getattr(self, part).replace("{stem}", stem)


def _wrong(what: str) -> IntegrityError:
    return IntegrityError(f"config.json: depth: {what}")


@dataclass(frozen=True)
class Depth(DepthKeys):
    """Spelled as in config.json and GGUF."""

    adapter_size: int = 0
    gate_rank: int = 0
    calibration: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # thresholds, executed fractions

    def __post_init__(self) -> None:
        if fault := self.layout.fault():
            raise _wrong(fault)
        if self.gate_kind == "bottleneck" and not self.gate_rank:
            raise _wrong("gate_rank is missing, bottleneck gates need one")

    def has_adapter(self, layer: int) -> bool:
        return bool(self.adapter_size) and self.layout.has_adapter(layer)

    def dims(self) -> dict[str, int]:
        """`m+`: the adapter's hidden units with those of zeros that fill up the last block."""
        return {"m": self.adapter_size, "m+": self.adapter_size + self.missing_units, "r": self.gate_rank}

    @property
    def missing_units(self) -> int:
        return -self.adapter_size % ADAPTER_MULTIPLE


def read_depth(config: Config, n_layer: int) -> Depth | None:
    section = config.section("depth")
    if section is None:
        return None
    return Depth(
        gate_kind=section.choice("gate_kind", GATE_KINDS, "linear"),
        gate_span=section.items("gate_span", int, n_layer),
        gate_scope=section.items("gate_scope", str, n_layer, default=None),
        gate_exit=section.items("gate_exit", bool, n_layer, default=None),
        threshold=section.number("threshold", 0.5, high=1.0),
        kv_policy=section.choice("kv_policy", KV_POLICIES, "project"),
        ffn_scaled_by_gate=section.flag("ffn_scaled_by_gate", False),
        adapter_scaled_by_gate=section.flag("adapter_scaled_by_gate", False),
        min_layers=section.integer("min_layers", 0, low=0),
        always_run_tokens=section.integer("always_run_tokens", 0, low=0, high=(1 << 31) - 1),
        adapter_size=section.integer("adapter_size", 0, low=0),
        gate_rank=section.integer("gate_rank", 0, low=0),
        calibration=_read_calibration(section.section("calibration")),
    )


def _read_calibration(section: Config | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if section is None:
        return None
    thresholds = section.items("threshold", float)
    fractions = section.items("executed_fraction", float, len(thresholds))
    in_range = all(0.0 <= value <= 1.0 for value in (*thresholds, *fractions))
    if not thresholds or list(thresholds) != sorted(thresholds) or not in_range:
        raise IntegrityError(f"{section.where} is not sorted by threshold, or has values outside of 0..1")
    return thresholds, fractions


def depth_rows(depth: Depth, layer: int, names: Names, present: Collection[str], *, exact: bool) -> Iterator[Row]:
    """Rows of the gates that begin at `layer`; `present` are the checkpoint's tensors."""
    for gate in depth.layout.at(layer):
        yield from _gate_rows(depth, layer, names, gate.stem, present, exact)
    if depth.has_adapter(layer):
        yield from _adapter_rows(names, depth.missing_units)


def _adapter_rows(names: Names, missing: int) -> Iterator[Row]:
    """A unit of zeros adds nothing: silu(0) * 0."""
    for part, shape in (("skip_gate", "m d"), ("skip_up", "m d"), ("skip_down", "d m")):
        to, role = shape.replace("m", "m+"), f"depth_{part}"
        transform = padded(missing, shape.split().index("m")) if missing else SAME
        yield row(names.part(part, ""), f"blk.{{i}}.{role}.weight", shape, transform, to=to, role=role)


def _gate_rows(
    depth: Depth, layer: int, names: Names, stem: str, present: Collection[str], exact: bool
) -> Iterator[Row]:
    enc, norm, dec, head, bias = (names.part(part, stem) for part in ("enc", "norm", "dec", "head", "bias"))
    target = f"blk.{{i}}.{stem}"
    width = "d"
    if depth.gate_kind == "bottleneck":
        yield row(enc, f"{target}_enc.weight", "r d", role=GATE_ROLE)
        yield row(norm, f"{target}_norm.weight", "r", role=GATE_ROLE)
        if dec.format(i=layer) not in present:
            width = "r"  # folded already
        elif exact:
            yield row(dec, f"{target}_dec.weight", "d r", role=GATE_ROLE)
    yield row(bias, f"{target}.bias", "1", role=GATE_ROLE, required=False)
    if depth.gate_kind == "bottleneck" and not exact and width == "d":
        yield Row(((dec, "d r"), (head, "1 d")), (Target(f"{target}.weight", "r", FOLD, GATE_ROLE),))
    else:
        yield row(head, f"{target}.weight", f"1 {width}", FLATTEN, to=width, role=GATE_ROLE)


def depth_fields(depth: Depth) -> list[Field]:
    key = "liquid.depth."
    found = [
        fields.u32(key + "version", VERSION),
        fields.string(key + "gate_kind", depth.gate_kind),
        fields.array(key + "gate_span", depth.gate_span, Type.UINT32),
        fields.f32(key + "threshold", depth.threshold),
        fields.string(key + "kv_policy", depth.kv_policy),
        fields.boolean(key + "ffn_scaled_by_gate", depth.ffn_scaled_by_gate),
        fields.boolean(key + "adapter_scaled_by_gate", depth.adapter_scaled_by_gate),
        fields.u32(key + "min_layers", depth.min_layers),
        fields.u32(key + "always_run_tokens", depth.always_run_tokens),
    ]
    if depth.gate_scope is not None:
        found.append(fields.array(key + "gate_scope", depth.gate_scope, Type.STRING))
    if depth.gate_exit is not None:
        found.append(fields.array(key + "gate_exit", depth.gate_exit, Type.BOOL))
    if depth.calibration is not None:
        thresholds, fractions = depth.calibration
        found.append(fields.array(key + "calibration.threshold", thresholds, Type.FLOAT32))
        found.append(fields.array(key + "calibration.executed_fraction", fractions, Type.FLOAT32))
    return found
