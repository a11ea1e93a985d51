"""What must hold of the gates in a `liquid` file: its `liquid.depth.*` keys and the tensors they promise.

Knows the format of version 1. Knows nothing of how gates decide.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NoReturn

from gguf import GGMLQuantizationType, GGUFValueType

from .errors import IntegrityError, quote
from .gate_layout import GATE_KINDS, KV_POLICIES, GateLayout, GatePlace

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

PREFIX = "liquid.depth."
_VERSION = 1
_PARTS = ("", "_enc", "_norm", "_dec")  # after the gate's stem
_SKIP_TENSORS = ("depth_skip_gate", "depth_skip_up", "depth_skip_down")
_GATE_TYPES = frozenset((GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16))
_ADAPTER_MULTIPLE = 32
_TYPES = {
    "version": GGUFValueType.UINT32,
    "gate_kind": GGUFValueType.STRING,
    "threshold": GGUFValueType.FLOAT32,
    "kv_policy": GGUFValueType.STRING,
    "ffn_scaled_by_gate": GGUFValueType.BOOL,
    "adapter_scaled_by_gate": GGUFValueType.BOOL,
    "min_layers": GGUFValueType.UINT32,
    "always_run_tokens": GGUFValueType.UINT32,
}


def check_depth(f: GGUFFile, n_layer: int) -> None:
    """Raise IntegrityError for the first depth key or tensor of `f` that is wrong."""
    if not any(key.startswith(PREFIX) for key in f.metadata):
        stray = next((name for name in f.tensors if ".depth_" in name), None)
        if stray:
            _fail(f, f"there is a tensor {quote(stray)} but no {PREFIX}* key")
        return
    _check_tensors(f, check_depth_keys(f, n_layer).gates())


def check_depth_keys(f: GGUFFile, n_layer: int) -> GateLayout:
    """Raise IntegrityError for the first depth key of a model or a gate pack that is wrong; where the gates are."""
    _check_keys(f)
    layout = _check_layout(f, n_layer)
    _check_calibration(f)
    return layout


def _fail(f: GGUFFile, what: str) -> NoReturn:
    raise IntegrityError(f"{f.path}: {what}")


def _get(f: GGUFFile, name: str, default: Any = None) -> Any:
    return f.metadata.get(PREFIX + name, default)


def _check_keys(f: GGUFFile) -> None:
    for name, kind in _TYPES.items():
        if f.metadata_types.get(PREFIX + name, (kind,)) != (kind,):
            _fail(f, f"{PREFIX}{name} is {quote(_get(f, name))}, a value of type {kind.name} was expected")
    if _get(f, "version") != _VERSION:
        _fail(f, f"{PREFIX}version is {quote(_get(f, 'version'))}, this version reads {_VERSION}")
    if _get(f, "gate_kind") not in GATE_KINDS:
        _fail(f, f"{PREFIX}gate_kind is {quote(_get(f, 'gate_kind'))}, {' or '.join(GATE_KINDS)} was expected")
    policy = _get(f, "kv_policy", "project")
    if policy not in KV_POLICIES:
        _fail(f, f"{PREFIX}kv_policy is {quote(policy)}, {' or '.join(KV_POLICIES)} was expected")
    threshold = _get(f, "threshold", 0.5)
    if not 0 <= threshold <= 1:
        _fail(f, f"{PREFIX}threshold is {quote(threshold)}, a number from 0 to 1 was expected")


def _check_layout(f: GGUFFile, n_layer: int) -> GateLayout:
    spans = _get(f, "gate_span")
    if not isinstance(spans, list) or len(spans) != n_layer:
        found = f"{len(spans)} entries" if isinstance(spans, list) else quote(spans)
        _fail(f, f"{PREFIX}gate_span is {found}, one number for each of {n_layer} layers was expected")
    scopes, exits = _per_layer(f, "gate_scope", n_layer, str), _per_layer(f, "gate_exit", n_layer, bool)
    layout = GateLayout(spans, scopes, exits)
    if fault := layout.fault():
        _fail(f, fault)
    return layout


def _per_layer(f: GGUFFile, name: str, n_layer: int, kind: type) -> list[Any] | None:
    values = _get(f, name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != n_layer or not all(isinstance(v, kind) for v in values):
        _fail(f, f"{PREFIX}{name} must hold one {kind.__name__} for each of {n_layer} layers")
    return values


def _check_calibration(f: GGUFFile) -> None:
    names = ("calibration.threshold", "calibration.executed_fraction")
    thresholds, shares = (_get(f, name) for name in names)
    if thresholds is None and shares is None:
        return
    for name, values in zip(names, (thresholds, shares), strict=True):
        floats = f.metadata_types.get(PREFIX + name) == (GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
        if not floats or not values or not all(math.isfinite(v) and 0 <= v <= 1 for v in values):
            _fail(f, f"{PREFIX}{name} must be a list of f32 numbers from 0 to 1")
    if len(thresholds) != len(shares):
        _fail(f, f"the calibration has {len(thresholds)} thresholds and {len(shares)} executed fractions")
    if any(a >= b for a, b in itertools.pairwise(thresholds)):
        _fail(f, f"{PREFIX}{names[0]} must rise from entry to entry")


def _check_tensors(f: GGUFFile, gates: tuple[GatePlace, ...]) -> None:
    n_embd, kind = int(f.metadata.get("liquid.embedding_length", 0)), _get(f, "gate_kind")
    layers = tuple(f"blk.{gate.layer}." for gate in gates)
    allowed = {f"blk.{gate.layer}.{name}" for gate in gates for name in _names(gate)}
    for name in (name for name in f.tensors if ".depth_" in name):
        if not name.startswith(layers):
            _fail(f, f"there is a tensor {quote(name)} but no gate begins at that layer")
        if name not in allowed:
            _fail(f, f"there is a tensor {quote(name)} but the gate at that layer is of another kind")
    for gate in gates:
        _check_gate(f, f"blk.{gate.layer}.{gate.stem}", n_embd, kind)
        if gate.may_adapt:
            _check_adapter(f, gate.layer, n_embd)


def _names(gate: GatePlace) -> list[str]:
    names = [f"{gate.stem}.bias", *(f"{gate.stem}{part}.weight" for part in _PARTS)]
    return names + [f"{name}.weight" for name in _SKIP_TENSORS if gate.may_adapt]


def _check_gate(f: GGUFFile, stem: str, n_embd: int, kind: str) -> None:
    weight, enc, norm, dec = (f"{stem}{part}.weight" for part in _PARTS)
    for name in (weight, enc, norm, dec, f"{stem}.bias"):
        if name in f.tensors and f.tensors[name].type not in _GATE_TYPES:
            _fail(f, f"gate tensor {quote(name)} has type {f.tensors[name].type.name}, gates must not be quantized")
    if f"{stem}.bias" in f.tensors:
        _shaped(f, f"{stem}.bias", (1,))
    if kind == "linear":
        extra = next((name for name in (enc, norm, dec) if name in f.tensors), None)
        if extra:
            _fail(f, f"there is a tensor {quote(extra)} but the gates are linear")
        return _shaped(f, weight, (n_embd,))
    rank = f.tensors[norm].shape[0] if norm in f.tensors else 0
    _shaped(f, enc, (n_embd, rank))
    _shaped(f, norm, (rank,))
    if f.tensors[norm].type is not GGMLQuantizationType.F32:
        _fail(f, f"tensor {quote(norm)} is not F32, norms must be")
    if dec in f.tensors:
        _shaped(f, dec, (rank, n_embd))
        return _shaped(f, weight, (n_embd,))
    return _shaped(f, weight, (rank,))


def _check_adapter(f: GGUFFile, i: int, n_embd: int) -> None:
    names = [f"blk.{i}.{name}.weight" for name in _SKIP_TENSORS]
    if not any(name in f.tensors for name in names):
        return
    width = f.tensors[names[0]].shape[-1] if names[0] in f.tensors else 0
    for name, shape in zip(names, ((n_embd, width), (n_embd, width), (width, n_embd)), strict=True):
        _shaped(f, name, shape)
    if width % _ADAPTER_MULTIPLE:
        _fail(f, f"the adapter at layer {i} has {width} hidden units, no multiple of {_ADAPTER_MULTIPLE}")


def _shaped(f: GGUFFile, name: str, shape: tuple[int, ...]) -> None:
    if name not in f.tensors:
        _fail(f, f"the tensor {quote(name)} is missing")
    found = f.tensors[name].shape
    if found != shape:
        _fail(f, f"tensor {quote(name)} has the shape {list(found)}, {list(shape)} was expected")
