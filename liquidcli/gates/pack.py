"""Gate packs: a GGUF of general.type `adapter` that holds depth keys, gates and adapters, and names its base.

Knows the pack's keys and tensors and what must hold of them. Knows nothing of how a pack is trained, or of other bases
than by their identity.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

from ..errors import IntegrityError, quote
from ..files import atomic_output
from ..gate_layout import GATE_KINDS, KV_POLICIES, DepthKeys, GatePlace
from ..gguf_checks_depth import check_depth_keys
from ..gguf_file import GGUFFile, open_gguf
from . import container
from .identity import Identity, base_identity
from .matrix_order import MatrixOrder

BASE_PREFIX = "depth_gates.base."
ORDER = BASE_PREFIX + "order."
TENSORS_SHA256 = "depth_gates.tensors_sha256"  # of their bytes, in the file's order; packs written before have none
DEPTH = "depth."
SKIP_TENSORS = ("depth_skip_gate", "depth_skip_up", "depth_skip_down")
_GATE_PARTS = ("", "_enc", "_norm", "_dec")  # after a gate's stem
_LORA = re.compile(r"^((?!.*depth_).+\.weight)\.(lora_a|lora_b)$")
_CHOICES = {"gate_kind": GATE_KINDS, "kv_policy": KV_POLICIES}


@dataclass(frozen=True)
class Depth(DepthKeys):
    """The `liquid.depth.*` keys; names as there."""

    calibration_threshold: tuple[float, ...] = ()
    calibration_executed_fraction: tuple[float, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(i for i, span in enumerate(self.gate_span) if span)

    def keys(self, prefix: str = "liquid.depth.") -> dict[str, bytes]:
        """As GGUF keys, typed as the architecture page says."""
        keys = {
            "version": container.value(V.UINT32, 1),
            "gate_kind": container.value(V.STRING, self.gate_kind),
            "gate_span": container.array(V.UINT32, self.gate_span),
            "threshold": container.value(V.FLOAT32, self.threshold),
            "kv_policy": container.value(V.STRING, self.kv_policy),
            "ffn_scaled_by_gate": container.value(V.BOOL, self.ffn_scaled_by_gate),
            "adapter_scaled_by_gate": container.value(V.BOOL, self.adapter_scaled_by_gate),
            "min_layers": container.value(V.UINT32, self.min_layers),
            "always_run_tokens": container.value(V.UINT32, self.always_run_tokens),
        }
        if self.gate_scope:
            keys["gate_scope"] = container.array(V.STRING, self.gate_scope)
        if self.gate_exit:
            keys["gate_exit"] = container.array(V.BOOL, self.gate_exit)
        if self.calibration_threshold:
            keys["calibration.threshold"] = container.array(V.FLOAT32, self.calibration_threshold)
            keys["calibration.executed_fraction"] = container.array(V.FLOAT32, self.calibration_executed_fraction)
        return {prefix + key: raw for key, raw in keys.items()}


@dataclass(frozen=True)
class Pack:
    """A gate pack in memory: tensors as float32 in numpy order."""

    base: Identity
    depth: Depth
    tensors: dict[str, np.ndarray] = field(repr=False)
    name: str = ""
    path: Path | None = None

    @property
    def lora(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Low-rank updates by the base tensor's name: (a [r, in], b [out, r])."""
        names = {match[1] for name in self.tensors if (match := _LORA.match(name))}
        return {name: (self.tensors[f"{name}.lora_a"], self.tensors[f"{name}.lora_b"]) for name in sorted(names)}


def write_pack(path: Path, pack: Pack) -> None:
    """Write `pack`, whole or not at all: adapters and low-rank updates F16, gates F32."""
    check_pack(pack, path)
    keys = {
        "general.architecture": container.value(V.STRING, pack.base.architecture),
        "general.type": container.value(V.STRING, "adapter"),
        "adapter.type": container.value(V.STRING, "depth_gates"),
        "general.name": container.value(V.STRING, pack.name or "depth gates"),
    }
    for name, content in pack.base.as_json().items():
        kind = V.STRING if isinstance(content, str) else V.UINT32
        keys[BASE_PREFIX + name] = container.value(kind, content)
    if pack.base.order.names:
        keys[ORDER + "tensors"] = container.array(V.STRING, pack.base.order.names)
        keys[ORDER + "ranks"] = container.array(V.UINT8, pack.base.order.ranks)
    keys |= pack.depth.keys()
    tensors = [_tensor(name, content) for name, content in pack.tensors.items()]
    keys[TENSORS_SHA256] = container.value(V.STRING, _sha256(tensor.data() for tensor in tensors))
    with atomic_output(path, container.size_bytes(keys, tensors)) as part, part.open("wb") as file:
        container.write(file, keys, tensors)


def _tensor(name: str, content: np.ndarray) -> container.Tensor:
    halved = any(part in name for part in (*SKIP_TENSORS, ".lora_"))
    data = np.ascontiguousarray(content, np.float16 if halved else np.float32)
    return container.Tensor(name, content.shape[::-1], T.F16 if halved else T.F32, data.nbytes, lambda: data)


def _sha256(tensors: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for data in tensors:
        digest.update(data.data)
    return digest.hexdigest()


def read_pack(path: Path | str) -> Pack:
    """Read and check a pack; IntegrityError in one sentence for anything that is not one."""
    path = Path(path)
    with open_gguf(path) as f:
        if f.metadata.get("general.type") != "adapter" or f.metadata.get("adapter.type") != "depth_gates":
            kind = f.metadata.get("general.type", "model")
            raise IntegrityError(
                f"{path} is a GGUF of the type {quote(kind)}, a gate pack was expected",
                hint="liquid gates show PACK tells what a pack holds",
            )
        depth = read_depth(f, n_layer=_base_number(f, "block_count"))
        _check_bytes(f)
        tensors = {name: np.array(f.array(name)) for name in f.tensors}
        pack = Pack(_read_identity(f), depth, tensors, str(f.metadata.get("general.name", "")), path)
    check_pack(pack, path)
    return pack


def _check_bytes(f: GGUFFile) -> None:
    told = f.metadata.get(TENSORS_SHA256)
    if told is not None and told != _sha256(f.raw(name) for name in f.tensors):
        _fail(f.path, "its tensors are not those that were written: their sha256 differs from the one it holds")


def _said(value: Any) -> str:
    return "missing" if value is None else quote(value)


def _base_number(f: GGUFFile, name: str) -> int:
    number = f.metadata.get(BASE_PREFIX + name)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 31:
        _fail(f.path, f"{BASE_PREFIX}{name} is {_said(number)}, a number was expected")
    return number


def _read_identity(f: GGUFFile) -> Identity:
    text: dict[str, Any] = {name: f.metadata.get(BASE_PREFIX + name) for name in ("architecture", "norms_sha256")}
    for name, content in text.items():
        if not isinstance(content, str):
            _fail(f.path, f"{BASE_PREFIX}{name} is {_said(content)}, so the base it belongs to is not known")
    if text["architecture"] != f.architecture:
        _fail(f.path, f"it says {quote(f.architecture)} and is for a base of {quote(text['architecture'])}")
    numbers = ("block_count", "embedding_length", "feed_forward_length", "head_count", "head_count_kv")
    return Identity(**text, **dict[str, Any]((name, _base_number(f, name)) for name in numbers), order=_read_order(f))


def _read_order(f: GGUFFile) -> MatrixOrder:
    types = [f.metadata_types.get(ORDER + part) for part in ("tensors", "ranks")]
    if types == [None, None]:
        return MatrixOrder()
    names, ranks = f.metadata.get(ORDER + "tensors", ()), f.metadata.get(ORDER + "ranks", ())
    if types != [(V.ARRAY, V.STRING), (V.ARRAY, V.UINT8)]:
        _fail(f.path, f"{ORDER}tensors and {ORDER}ranks are not lists of names and of small numbers (u8)")
    order = MatrixOrder(tuple(names), bytes(ranks))
    if fault := order.fault(_base_number(f, "block_count")):
        _fail(f.path, f"{ORDER}tensors and {ORDER}ranks hold {fault}")
    return order


def read_depth(f: GGUFFile, n_layer: int) -> Depth:
    """The depth keys of a pack or of a liquid model, checked."""

    def get(name: str, default: Any = None) -> Any:
        return f.metadata.get(f"liquid.depth.{name}", default)

    check_depth_keys(f, n_layer)
    fields: dict[str, Any] = {
        name: get(name, getattr(Depth, name))
        for name in (
            "gate_kind",
            "threshold",
            "kv_policy",
            "ffn_scaled_by_gate",
            "adapter_scaled_by_gate",
            "min_layers",
            "always_run_tokens",
        )
    }
    for name in ("gate_span", "gate_scope", "gate_exit"):
        fields[name] = None if get(name) is None else tuple(get(name))
    for name in ("threshold", "executed_fraction"):
        fields[f"calibration_{name}"] = tuple(get(f"calibration.{name}", ()))
    depth = Depth(**fields)
    _check_depth(depth, f.path)
    return depth


def _fail(path: Path | None, what: str) -> NoReturn:
    raise IntegrityError(f"{path or 'the gate pack'}: {what}")


def _check_depth(depth: Depth, path: Path | None) -> None:
    for name, allowed in _CHOICES.items():
        if getattr(depth, name) not in allowed:
            _fail(path, f"liquid.depth.{name} is {quote(getattr(depth, name))}, not one of {', '.join(allowed)}")
    if fault := depth.layout.fault():
        _fail(path, fault)
    if not depth.layers:
        _fail(path, "it has no gate at all")
    if not isinstance(depth.threshold, float) or not 0 <= depth.threshold <= 1:
        _fail(path, f"liquid.depth.threshold is {quote(depth.threshold)}, a number from 0 to 1 was expected")
    _check_calibration(depth, path)


def _check_calibration(depth: Depth, path: Path | None) -> None:
    thresholds, shares = depth.calibration_threshold, depth.calibration_executed_fraction
    ok = len(thresholds) == len(shares) and all(
        isinstance(v, float) and math.isfinite(v) and 0 <= v <= 1 for v in (*thresholds, *shares)
    )
    if not ok or any(a >= b for a, b in itertools.pairwise(thresholds)):
        _fail(path, "its calibration is no rising list of thresholds with as many shares, all from 0 to 1")


def check_belongs(pack: Pack, f: GGUFFile) -> None:
    """IntegrityError unless `f` is a quantization of the base that `pack` was made for."""
    if difference := pack.base.difference(base_identity(f)):
        raise IntegrityError(
            f"{pack.path or 'the gate pack'} was made for another base than {f.path}: {difference}",
            hint="liquid gates show PACK tells which base a pack belongs to",
        )


def check_pack(pack: Pack, path: Path | None = None) -> None:
    """Raise IntegrityError for the first tensor that is missing, too many, of a wrong shape or not finite."""
    n_embd, n_layer = pack.base.embedding_length, pack.base.block_count
    if len(pack.depth.gate_span) != n_layer:
        _fail(path, f"gate_span has {len(pack.depth.gate_span)} entries for {n_layer} layers")
    _check_depth(pack.depth, path)
    gates = pack.depth.layout.gates()
    parts = _GATE_PARTS if pack.depth.gate_kind == "bottleneck" else _GATE_PARTS[:1]
    known = {f"blk.{gate.layer}.{name}" for gate in gates for name in _names(gate, parts)}
    for name, content in pack.tensors.items():
        if name not in known and not _LORA.match(name):
            _fail(path, f"tensor {quote(name)} belongs to no gate of this pack and updates no matrix")
        if not np.isfinite(content).all():
            _fail(path, f"tensor {quote(name)} holds numbers that are not finite")
    for gate in gates:
        _check_gate(pack, gate, n_embd, path)
        if gate.may_adapt:
            _check_adapter(pack, gate.layer, n_embd, path)
    _check_lora(pack, path)


def _names(gate: GatePlace, parts: tuple[str, ...]) -> list[str]:
    weights = [gate.stem + part for part in parts] + [name for name in SKIP_TENSORS if gate.may_adapt]
    return [f"{gate.stem}.bias", *(f"{name}.weight" for name in weights)]


def _check_gate(pack: Pack, gate: GatePlace, n_embd: int, path: Path | None) -> None:
    prefix = f"blk.{gate.layer}.{gate.stem}"
    if f"{prefix}.bias" in pack.tensors:
        _shaped(pack, f"{prefix}.bias", (1,), path)
    if pack.depth.gate_kind == "linear":
        return _shaped(pack, f"{prefix}.weight", (n_embd,), path)
    norm = pack.tensors.get(f"{prefix}_norm.weight")
    rank = len(norm) if norm is not None and norm.ndim else 0
    _shaped(pack, f"{prefix}_enc.weight", (rank, n_embd), path)
    _shaped(pack, f"{prefix}_norm.weight", (rank,), path)
    unfolded = f"{prefix}_dec.weight" in pack.tensors
    if unfolded:
        _shaped(pack, f"{prefix}_dec.weight", (n_embd, rank), path)
    return _shaped(pack, f"{prefix}.weight", (n_embd if unfolded else rank,), path)


def _check_adapter(pack: Pack, layer: int, n_embd: int, path: Path | None) -> None:
    names = [f"blk.{layer}.{name}.weight" for name in SKIP_TENSORS]
    if not any(name in pack.tensors for name in names):
        return
    m = len(pack.tensors[names[0]]) if names[0] in pack.tensors and pack.tensors[names[0]].ndim else 0
    for name, shape in zip(names, ((m, n_embd), (m, n_embd), (n_embd, m)), strict=True):
        _shaped(pack, name, shape, path)
    if m % 32 or not m:
        _fail(path, f"the adapter at layer {layer} has {m} hidden units, a multiple of 32 was expected")


def _check_lora(pack: Pack, path: Path | None) -> None:
    for name in {match[1] for tensor in pack.tensors if (match := _LORA.match(tensor))}:
        a, b = (pack.tensors.get(f"{name}.lora_{side}") for side in "ab")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            _fail(path, f"the low-rank update of {quote(name)} is not a pair [r, in], [out, r]")


def _shaped(pack: Pack, name: str, shape: tuple[int, ...], path: Path | None) -> None:
    if name not in pack.tensors:
        _fail(path, f"the tensor {quote(name)} is missing")
    found = pack.tensors[name].shape
    if found != shape:
        _fail(path, f"tensor {quote(name)} has the shape {list(found[::-1])}, {list(shape[::-1])} was expected")
