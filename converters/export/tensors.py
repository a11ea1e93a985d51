"""An architecture's rows read backwards: which tensors of a GGUF become which tensors of a checkpoint.

The same tables as forwards and as closed a world: every tensor of the GGUF belongs to one row or is made from the
configuration. Knows shapes and types from headers alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as GGMLType

from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import GGUFFile

from ..tensors import Dims, Row, Shape, Target, sized, stored_type

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_EXACT = {GGMLType.F32: "f32", GGMLType.F16: "f16", GGMLType.BF16: "bf16"}
_QUANTIZED = "f16"  # a quantized weight needs more digits than BF16 has


@dataclass(frozen=True)
class Export:
    """One tensor of the checkpoint, and the GGUF's that hold it."""

    name: str
    shape: Shape
    dtype: str  # safetensors' spelling
    row: Row
    number: int  # which of the row's sources it is

    @property
    def size_bytes(self) -> int:
        size = ITEM_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size

    def as_json(self) -> dict:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "sources": [target.name for target in self.row.targets],
        }


def guess_dtype(f: GGUFFile) -> str:
    """`auto`: the type that holds most of the numbers; f16 where that is a quantized one."""
    counts: dict[str, int] = {}
    for info in f.tensors.values():
        if len(info.shape) > 1:
            dtype = _EXACT.get(info.type, _QUANTIZED)
            counts[dtype] = counts.get(dtype, 0) + info.n_elements
    return max(counts, key=lambda dtype: counts[dtype]) if counts else "f32"


def match_back(f: GGUFFile, rows: Iterable[Row], dims: Dims, generated: Collection[str], dtype: str) -> list[Export]:
    """IntegrityError for what is unknown, missing or misshapen, LiquidError for what has no way back."""
    exports, used = [], set(generated)
    missing: list[str] = []
    for row in rows:
        if row.dropped:
            continue
        there = [target for target in row.targets if target.name in f.tensors]
        if not there and not row.required:
            continue
        missing += [target.name for target in row.targets if target not in there]
        used |= {target.name for target in row.targets}
        if len(there) == len(row.targets):
            exports += _exports(f, row, dims, dtype)
    unknown = [name for name in f.tensors if name not in used]
    if missing or unknown:
        what, names = ("lacks", missing) if missing else ("holds what its architecture has no place for:", unknown)
        more = ", ..." if len(names) > 10 else ""
        raise IntegrityError(f"{f.path} {what} {len(names)} tensors: {', '.join(names[:10])}{more}")
    return exports


def _exports(f: GGUFFile, row: Row, dims: Dims, dtype: str) -> list[Export]:
    for target in row.targets:
        _check(f, target, dims)
        if target.transform.inverse is None:
            raise LiquidError(f"{f.path}: {target.name} was made by {target.transform.name}, which has no way back")
    kind = DTYPES[dtype]
    if all(_stays_f32(f, target, dims) for target in row.targets):
        kind = "F32"
    return [Export(name, sized(shape, dims), kind, row, i) for i, (name, shape) in enumerate(row.sources)]


def _stays_f32(f: GGUFFile, target: Target, dims: Dims) -> bool:
    """Norms, biases, routers, gates: what every GGUF keeps in F32 loses nothing here either."""
    always = stored_type(target.name, sized(target.shape, dims), target.role, "q8_0") is GGMLType.F32
    return always and f.tensors[target.name].type is GGMLType.F32


def _check(f: GGUFFile, target: Target, dims: Dims) -> None:
    found, expected = f.tensors[target.name].shape[::-1], sized(target.shape, dims)
    if found != expected:
        raise IntegrityError(
            f"{f.path}: {target.name} has the shape {list(reversed(found))}, its keys make it "
            f"{list(reversed(expected))}"
        )
