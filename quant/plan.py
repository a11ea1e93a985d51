"""From a GGUF and a type's name to a plan: every tensor's type, size and the reason for it, before a byte is written.

Knows what a plan holds and what makes one impossible. Reads headers only; `choose` picks types, `run` does the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as T

from liquidcli.errors import UsageError
from liquidcli.gguf_file import GGUFFile, TensorInfo, open_gguf

from .choose import Chooser, facts_of, layer_of, trimmed
from .container import header_bytes, output_keys, shard_keys
from .imatrix import Imatrix, check_belongs, importance, read_imatrix, weights_for
from .options import Options, key_overrides, optional_tensor_type, overrides
from .types import COPY, FileType, block_elements, file_type, is_quantized, needs_imatrix, tensor_bytes


@dataclass(frozen=True)
class TensorPlan:
    name: str
    shape: tuple[int, ...]  # ggml order, without trailing ones
    source_type: T
    type: T
    source_bytes: int
    size_bytes: int
    reason: str

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "source_type": self.source_type.name, "type": self.type.name}


@dataclass(frozen=True)
class ShardPlan:
    """One file that will be written."""

    tensors: tuple[TensorPlan, ...]
    alignment: int
    keys: dict[str, bytes] = field(repr=False)  # name -> type and value as they are written

    @property
    def head(self) -> bytes:
        return header_bytes(self.keys, self.tensors, self.alignment)

    @property
    def size_bytes(self) -> int:
        """To the byte."""
        return len(self.head) + sum(-(-t.size_bytes // self.alignment) * self.alignment for t in self.tensors)


@dataclass(frozen=True)
class Plan:
    """What `run` will do. Tensors in the order in which they are written."""

    input: Path
    type: FileType
    options: Options
    shards: tuple[ShardPlan, ...]
    imatrix: Path | None
    without_importance: tuple[str, ...]  # matrices that cannot be made for want of an importance matrix
    n_unweighted: int = 0  # matrices of the layers of which the importance matrix says nothing

    @property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def keys(self) -> dict[str, bytes]:
        return self.shards[0].keys

    @property
    def size_bytes(self) -> int:
        """Of the output file or files, to the byte."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def source_bytes(self) -> int:
        return sum(t.source_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return sum(t.size_bytes for t in self.tensors) * 8 / max(sum(t.n_elements for t in self.tensors), 1)

    @property
    def n_fallbacks(self) -> int:
        return sum("do not divide" in t.reason for t in self.tensors)

    @property
    def needs_imatrix(self) -> bool:
        return bool(self.without_importance)

    def as_json(self, *, with_tensors: bool = True) -> dict[str, Any]:
        about = {
            "input": str(self.input),
            "type": self.type.name,
            "file_type": self.type.number,
            "size_bytes": self.size_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "imatrix": str(self.imatrix) if self.imatrix else None,
            "needs_imatrix": self.needs_imatrix,
        }
        return {**about, "tensors": [t.as_json() for t in self.tensors]} if with_tensors else about


def plan(
    path: Path | str,
    type: str,
    *,
    tensor_type: Sequence[str] = (),
    imatrix: Path | str | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    allow_requantize: bool = False,
    keep_split: bool = False,
    override_kv: Sequence[str] = (),
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
) -> Plan:
    """Plan to quantize `path` to `type`; words as on the command line."""
    options = Options(
        overrides(tensor_type),
        optional_tensor_type(output_tensor_type),
        optional_tensor_type(token_embedding_type),
        leave_output_tensor,
        pure,
        allow_requantize,
        keep_split,
        key_overrides(override_kv),
        tuple(include_weights),
        tuple(exclude_weights),
    )
    return plan_path(path, type, options, Path(imatrix) if imatrix else None)


def plan_path(path: Path | str, type: str, options: Options = Options(), imatrix: Path | None = None) -> Plan:
    """`plan`, with the options already read."""
    wanted = file_type(type)
    with open_gguf(path) as f:
        return plan_file(f, wanted, options, imatrix)


def plan_file(f: GGUFFile, wanted: FileType, options: Options = Options(), imatrix: Path | None = None) -> Plan:
    """Plan for an open file; cheap enough to be asked for every type."""
    order = _by_place if options.keep_split else _by_layer
    tensors = sorted(f.tensors.values(), key=order)
    weights = weights_for(imatrix, options)
    facts = facts_of(f, options, weights is not None)
    chosen = Chooser(wanted, options, facts, tensors).choose_all()
    rows = tuple(_row(f, info, *chosen[info.name]) for info in tensors)
    _check_sources(f, rows, options)
    if imatrix:
        check_belongs(read_imatrix(imatrix), imatrix, f.path, {row.name for row in rows}, facts.n_layer)
    without, n_unweighted = _importances(wanted, rows, weights)
    more = [*options.override_kv, *(weights.keys(imatrix).items() if weights and imatrix else ())]
    keys = output_keys(f, _number(f, wanted), more)
    return Plan(f.path, wanted, options, _shards(f, rows, keys, options), imatrix, without, n_unweighted)


def _by_layer(info: TensorInfo) -> tuple[int, str]:
    return layer_of(info.name), info.name


def _by_place(info: TensorInfo) -> tuple[int, int]:
    return info.shard, info.offset


def _row(f: GGUFFile, info: TensorInfo, kind: T, reason: str) -> TensorPlan:
    if kind is not info.type and info.shape[0] % block_elements(kind):
        raise UsageError(f"{f.path}: rows of {info.shape[0]} in {info.name!r} do not divide into blocks of {kind.name}")
    return TensorPlan(
        info.name, trimmed(info.shape), info.type, kind, info.size_bytes, tensor_bytes(kind, info.n_elements), reason
    )


def _check_sources(f: GGUFFile, rows: tuple[TensorPlan, ...], options: Options) -> None:
    for row in rows:
        if row.type is not row.source_type and is_quantized(row.source_type) and not options.allow_requantize:
            raise UsageError(
                f"{f.path}: {row.name!r} is already quantized to {row.source_type.name}",
                hint="start from F16 or F32 for the best result, or add --allow-requantize",
            )


def _number(f: GGUFFile, wanted: FileType) -> int | None:
    """For general.file_type; a copy keeps its own."""
    if wanted is not COPY:
        return wanted.number
    found = f.metadata.get("general.file_type")
    return found if isinstance(found, int) else None


def _importances(wanted: FileType, rows: tuple[TensorPlan, ...], matrix: Imatrix | None) -> tuple[tuple[str, ...], int]:
    """Matrices that need importance and have none, and how many could have some and have none."""
    changed = [row for row in rows if row.type is not row.source_type]
    bare = [row for row in changed if matrix is None or importance(matrix, row.name, row.shape) is None]
    without = tuple(row.name for row in bare if needs_imatrix(wanted.name, row.name, row.type))
    n_unweighted = sum(is_quantized(row.type) and layer_of(row.name) >= 0 for row in bare) if matrix else 0
    return without, n_unweighted


def _shards(
    f: GGUFFile, rows: tuple[TensorPlan, ...], keys: dict[str, bytes], options: Options
) -> tuple[ShardPlan, ...]:
    if not options.keep_split or len(f.paths) == 1:
        return (ShardPlan(rows, f.alignment, keys),)
    parts = [tuple(row for row in rows if f.tensors[row.name].shard == no) for no in range(len(f.paths))]
    return tuple(
        ShardPlan(part, f.alignment, {**(keys if no == 0 else {}), **shard_keys(no, len(parts), len(rows))})
        for no, part in enumerate(parts)
    )
