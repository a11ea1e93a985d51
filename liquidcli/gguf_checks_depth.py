"""What must hold of the gates in a `liquid` file: its `liquid.depth.*` keys and the tensors they promise.

Knows the format of version 1 and which parts of it this version runs. Knows nothing of how gates decide.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NoReturn

from gguf import GGMLQuantizationType, GGUFValueType

from .errors import IntegrityError
from .gguf_parse import quote

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

PREFIX = "liquid.depth."
GATE_KINDS = ("linear", "bottleneck")
_VERSION = 1
_GATE_TENSORS = ("depth_gate", "depth_gate_enc", "depth_gate_norm", "depth_gate_dec")
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
    """Raise IntegrityError for the first depth key or tensor of `f` that is wrong or not supported by this version."""
    if not any(key.startswith(PREFIX) for key in f.metadata):
        stray = next((name for name in f.tensors if ".depth_" in name), None)
        if stray:
            _fail(f, f"there is a tensor {quote(stray)} but no {PREFIX}* key")
        return
    _check_keys(f)
    spans = _check_spans(f, n_layer)
    _check_unsupported(f, n_layer)
    _check_calibration(f)
    _check_tensors(f, spans)


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
    threshold = _get(f, "threshold", 0.5)
    if not 0 <= threshold <= 1:
        _fail(f, f"{PREFIX}threshold is {quote(threshold)}, a number from 0 to 1 was expected")


def _check_spans(f: GGUFFile, n_layer: int) -> list[int]:
    spans = _get(f, "gate_span")
    if not isinstance(spans, list) or len(spans) != n_layer:
        found = f"{len(spans)} entries" if isinstance(spans, list) else quote(spans)
        _fail(f, f"{PREFIX}gate_span is {found}, one number for each of {n_layer} layers was expected")
    free_from = 0
    for i, span in enumerate(spans):
        if isinstance(span, bool) or not isinstance(span, int) or span < 0 or i + span > n_layer:
            _fail(f, f"the gate at layer {i} spans {quote(span)} of {n_layer} layers")
        if span and i < free_from:
            _fail(f, f"the gate at layer {i} lies inside the span of the one before it")
        free_from = max(free_from, i + span)
    return spans


def _check_unsupported(f: GGUFFile, n_layer: int) -> None:
    policy = _get(f, "kv_policy", "project")
    if policy == "drop":
        _fail(f, f"{PREFIX}kv_policy is 'drop', which is not supported by this version")
    if policy != "project":
        _fail(f, f"{PREFIX}kv_policy is {quote(policy)}, 'project' or 'drop' was expected")
    exits, scopes = _get(f, "gate_exit", [False] * n_layer), _get(f, "gate_scope", ["layer"] * n_layer)
    for name, values in (("gate_exit", exits), ("gate_scope", scopes)):
        if not isinstance(values, list) or len(values) != n_layer:
            _fail(f, f"{PREFIX}{name} must hold one value for each of {n_layer} layers")
    if any(exits):
        layer = next(i for i, is_exit in enumerate(exits) if is_exit)
        _fail(f, f"layer {layer} has an exit gate, which is not supported by this version")
    for i, scope in enumerate(scopes):
        if scope in ("attn", "ffn", "attn+ffn"):
            _fail(f, f"the gate at layer {i} has the scope {quote(scope)}, which is not supported by this version")
        if scope not in ("layer", ""):
            _fail(f, f"the gate at layer {i} has the scope {quote(scope)}, layer, attn, ffn or attn+ffn was expected")


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


def _check_tensors(f: GGUFFile, spans: list[int]) -> None:
    n_embd = int(f.metadata.get("liquid.embedding_length", 0))
    allowed = {f"blk.{i}." for i, span in enumerate(spans) if span}
    for name in f.tensors:
        if ".depth_" in name and not any(name.startswith(prefix) for prefix in allowed):
            _fail(f, f"there is a tensor {quote(name)} but no gate begins at that layer")
    for i, span in enumerate(spans):
        if span:
            _check_gate(f, i, n_embd, _get(f, "gate_kind"))
            _check_adapter(f, i, n_embd)


def _check_gate(f: GGUFFile, i: int, n_embd: int, kind: str) -> None:
    names = {name: f"blk.{i}.{name}.weight" for name in _GATE_TENSORS}
    for name in (*names.values(), f"blk.{i}.depth_gate.bias"):
        if name in f.tensors and f.tensors[name].type not in _GATE_TYPES:
            _fail(f, f"gate tensor {quote(name)} has type {f.tensors[name].type.name}, gates must not be quantized")
    if f"blk.{i}.depth_gate.bias" in f.tensors:
        _shaped(f, f"blk.{i}.depth_gate.bias", (1,))
    if kind == "linear":
        extra = next((name for key, name in names.items() if key != "depth_gate" and name in f.tensors), None)
        if extra:
            _fail(f, f"there is a tensor {quote(extra)} but the gates are linear")
        return _shaped(f, names["depth_gate"], (n_embd,))
    rank = f.tensors[names["depth_gate_norm"]].shape[0] if names["depth_gate_norm"] in f.tensors else 0
    _shaped(f, names["depth_gate_enc"], (n_embd, rank))
    _shaped(f, names["depth_gate_norm"], (rank,))
    if f.tensors[names["depth_gate_norm"]].type is not GGMLQuantizationType.F32:
        _fail(f, f"tensor {quote(names['depth_gate_norm'])} is not F32, norms must be")
    if names["depth_gate_dec"] in f.tensors:
        _shaped(f, names["depth_gate_dec"], (rank, n_embd))
        return _shaped(f, names["depth_gate"], (n_embd,))
    return _shaped(f, names["depth_gate"], (rank,))


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
