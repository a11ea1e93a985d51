"""The closed world of an architecture's tensors: each tensor meets exactly one row, each row gets its tensors.

Knows rows, shapes and which types are stored how. Knows neither architectures nor the numbers inside.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import gguf
from gguf import GGMLQuantizationType as GGMLType

from liquidcli.errors import IntegrityError

from .checkpoint import CARRIERS, SourceTensor
from .transforms import SAME, Transform

Shape = tuple[int, ...]
Dims = Mapping[str, int]

OUTTYPES = {"f32": GGMLType.F32, "f16": GGMLType.F16, "bf16": GGMLType.BF16, "q8_0": GGMLType.Q8_0}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
GATE_ROLE = "depth_gate"


@dataclass(frozen=True)
class Target:
    """One tensor of the GGUF, from all sources of its row."""

    name: str
    shape: str  # slowest axis first, in letters of the architecture's dims
    transform: Transform = SAME
    role: str = ""


@dataclass(frozen=True)
class Row:
    """Checkpoint tensors that are consumed together. `{i}` in names is the layer."""

    sources: tuple[tuple[str, str], ...]  # (name, shape in letters)
    targets: tuple[Target, ...] = ()
    required: bool = True
    dropped: str = ""  # why nothing is made of it
    same_as: str = ""  # a dropped tensor must equal this one, byte for byte


def row(
    source: str, target: str, shape: str, transform: Transform = SAME, *, to: str = "", role: str = "", required=True
) -> Row:
    """One tensor to one tensor; `to` is the new shape where it changes."""
    return Row(((source, shape),), (Target(target, to or shape, transform, role),), required)


def drop(source: str, reason: str, *, same_as: str = "") -> Row:
    """A tensor that may be there and is not needed."""
    return Row(((source, ""),), required=False, dropped=reason, same_as=same_as)


@dataclass(frozen=True)
class Output:
    """One tensor to write, decided from headers alone."""

    name: str
    shape: Shape  # slowest axis first
    type: GGMLType
    size_bytes: int
    sources: tuple[SourceTensor, ...]
    transform: Transform
    role: str = ""

    @property
    def origin(self) -> str:
        """The sources' names, of a stack the first and the last."""
        names = [source.name for source in self.sources]
        return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)} tensors)"

    def as_json(self) -> dict:
        return {
            "name": self.name,
            "shape": list(reversed(self.shape)),
            "type": self.type.name,
            **({"role": self.role} if self.role else {}),
            "sources": [source.name for source in self.sources],
        }


@dataclass(frozen=True)
class Dropped:
    source: SourceTensor
    reason: str
    same_as: SourceTensor | None = None


def bind(rows: Iterable[Row], layer: int | None = None) -> Iterator[Row]:
    """Rows with the layer's number in their names."""
    for item in rows:
        yield Row(
            tuple((name.format(i=layer), shape) for name, shape in item.sources),
            tuple(Target(t.name.format(i=layer), t.shape, t.transform, t.role) for t in item.targets),
            item.required,
            item.dropped,
            item.same_as.format(i=layer),
        )


def prefixed(rows: Iterable[Row], prefix: str) -> Iterator[Row]:
    """Rows of a model that is a part of the checkpoint's."""
    for item in rows:
        sources = tuple((prefix + name, shape) for name, shape in item.sources)
        yield replace(item, sources=sources, same_as=item.same_as and prefix + item.same_as)


def match(
    tensors: Mapping[str, SourceTensor], rows: Iterable[Row], dims: Dims, outtype: str
) -> tuple[list[Output], list[Dropped]]:
    """Outputs and drops of a checkpoint; IntegrityError for what is unknown, missing, misshapen or oddly stored."""
    rows = list(rows)
    _check_names(tensors, rows)
    outputs, dropped = [], []
    for item in rows:
        if not all(name in tensors for name, _ in item.sources):
            continue
        sources = tuple(tensors[name] for name, _ in item.sources)
        if item.dropped:
            dropped.append(Dropped(sources[0], item.dropped, tensors.get(item.same_as)))
            continue
        for source, (_, shape) in zip(sources, item.sources, strict=True):
            _check_source(source, sized(shape, dims))
        outputs += [_output(target, sources, dims, outtype) for target in item.targets]
    return outputs, dropped


def sized(letters: str, dims: Dims) -> Shape:
    """`"q d"` with its sizes; plain numbers stand for themselves."""
    return tuple(int(letter) if letter.isdigit() else dims[letter] for letter in letters.split())


def _check_names(tensors: Mapping[str, SourceTensor], rows: list[Row]) -> None:
    known: dict[str, Row] = {}
    for item in rows:
        for name, _ in item.sources:
            if known.setdefault(name, item) is not item:
                raise ValueError(f"two rows claim {name}")
    if unmatched := [name for name in tensors if name not in known]:
        near = difflib.get_close_matches(unmatched[0], _neighbours(unmatched[0], known), 1, 0.0)
        raise IntegrityError(
            f"{len(unmatched)} of the checkpoint's {len(tensors)} tensors are unknown to this architecture: "
            f"{_ten(unmatched)} (nearest known to the first: {near[0] if near else 'none'})"
        )
    missing = [name for item in rows for name, _ in item.sources if item.required and name not in tensors]
    half = [name for item in rows if not item.required for name, _ in item.sources if name not in tensors]
    half = [name for name in half if any(other in tensors for other, _ in known[name].sources)]
    if missing or half:
        raise IntegrityError(f"the checkpoint lacks {len(missing + half)} tensors: {_ten(missing + half)}")


def _neighbours(name: str, known: Iterable[str], count: int = 1000) -> list[str]:
    """The known names that stand around it in the alphabet: comparing with tens of thousands takes too long."""
    names = sorted(known)
    first = max(bisect.bisect(names, name) - count // 2, 0)
    return names[first : first + count]


def _ten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _check_source(source: SourceTensor, expected: Shape) -> None:
    if source.shape != expected:
        raise IntegrityError(
            f"{source.name} has the shape {list(source.shape)}, config.json makes it {list(expected)}"
        )
    if source.dtype not in CARRIERS:
        raise IntegrityError(f"{source.name} is stored as {source.dtype}, expected one of {', '.join(CARRIERS)}")


def _output(target: Target, sources: tuple[SourceTensor, ...], dims: Dims, outtype: str) -> Output:
    shape = sized(target.shape, dims)
    kind = stored_type(target.name, shape, target.role, outtype)
    return Output(target.name, shape, kind, size_bytes(shape, kind), sources, target.transform, target.role)


def stored_type(name: str, shape: Shape, role: str, outtype: str) -> GGMLType:
    """Upstream's rules: vectors, norms, routers and whatever is no `.weight` stay F32; depth gates do too.

    A row that does not divide into blocks falls back to F16.
    """
    stays_f32 = len(shape) <= 1 or name.endswith(("_norm.weight", ".ffn_gate_inp.weight"))
    if stays_f32 or not name.endswith(".weight") or role == GATE_ROLE:
        return GGMLType.F32
    kind = OUTTYPES[outtype]
    return GGMLType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] else kind


def size_bytes(shape: Shape, kind: GGMLType) -> int:
    block_items, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return prod(shape) // block_items * block_bytes


def guess_outtype(tensors: Iterable[SourceTensor]) -> str:
    """`auto`: the 16-bit type of the first matrix that has one, else f16, as upstream decides."""
    for tensor in tensors:
        if len(tensor.shape) >= 2 and tensor.dtype in ("BF16", "F16"):
            return tensor.dtype.lower()
    return "f16"
