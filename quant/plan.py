"""From a GGUF and a type's name to a plan: every tensor's type, size and the reason for it, before a byte is written.

Knows the order in which the rules of `recipes` apply, and what options change. Reads headers only; `run` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.gguf_file import GGUFFile, TensorInfo, open_gguf

from . import recipes
from .container import header_bytes, output_keys
from .types import FileType, block_elements, file_type, is_quantized, tensor_bytes, tensor_type

_LAYER = re.compile(r"blk\.(-?\d+)")
_OVERRIDE_HINT = "for example --tensor-type attn_q=q8_0"


@dataclass(frozen=True)
class Options:
    """What may be asked beside the type; names as in llama-quantize."""

    tensor_type: tuple[tuple[str, T], ...] = ()  # (regular expression, type), the first that matches counts
    output_tensor_type: T | None = None
    token_embedding_type: T | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    allow_requantize: bool = False


@dataclass(frozen=True)
class TensorPlan:
    name: str
    shape: tuple[int, ...]  # ggml order, without trailing ones
    source_type: T
    type: T
    source_bytes: int
    size_bytes: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "source_type": self.source_type.name, "type": self.type.name}


@dataclass(frozen=True)
class Plan:
    """What `run` will do. Tensors in the order in which they are written."""

    input: Path
    type: FileType
    options: Options
    tensors: tuple[TensorPlan, ...]
    alignment: int
    imatrix: Path | None
    keys: dict[str, bytes] = field(repr=False)  # name -> type and value as they are written

    @property
    def header_bytes(self) -> int:
        return len(header_bytes(self.keys, self.tensors, self.alignment))

    @property
    def size_bytes(self) -> int:
        """Of the output file, to the byte."""
        return self.header_bytes + sum(-(-t.size_bytes // self.alignment) * self.alignment for t in self.tensors)

    @property
    def source_bytes(self) -> int:
        return sum(t.source_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        n_weights = sum(_n_elements(t.shape) for t in self.tensors)
        return sum(t.size_bytes for t in self.tensors) * 8 / max(n_weights, 1)

    @property
    def n_fallbacks(self) -> int:
        return sum("do not divide" in t.reason for t in self.tensors)

    def as_json(self, *, with_tensors: bool = True) -> dict[str, Any]:
        about = {
            "input": str(self.input),
            "type": self.type.name,
            "file_type": self.type.number,
            "size_bytes": self.size_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "imatrix": str(self.imatrix) if self.imatrix else None,
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
) -> Plan:
    """Plan to quantize `path` to `type`; words as on the command line, `tensor_type` as RE=TYPE."""
    options = Options(
        overrides(tensor_type),
        optional_tensor_type(output_tensor_type),
        optional_tensor_type(token_embedding_type),
        leave_output_tensor,
        pure,
        allow_requantize,
    )
    return plan_path(path, type, options, Path(imatrix) if imatrix else None)


def plan_path(path: Path | str, type: str, options: Options = Options(), imatrix: Path | None = None) -> Plan:
    """`plan`, with the options already read."""
    wanted = file_type(type)
    with open_gguf(path) as f:
        return plan_file(f, wanted, options, imatrix)


def plan_file(f: GGUFFile, wanted: FileType, options: Options = Options(), imatrix: Path | None = None) -> Plan:
    """Plan for an open file; cheap enough to be asked for every type."""
    facts = _facts(f, imatrix is not None)
    tensors = sorted(f.tensors.values(), key=_write_order)
    chosen = _Chooser(wanted, options, facts, tensors).choose_all()
    rows = tuple(_row(f, info, *chosen[info.name]) for info in tensors)
    _check_sources(f, rows, options)
    keys = output_keys(f, wanted.number, imatrix)
    return Plan(f.path, wanted, options, rows, f.alignment, imatrix, keys)


def overrides(words: Sequence[str]) -> tuple[tuple[str, T], ...]:
    """RE=TYPE words; the expression is lower-cased as llama-quantize does."""
    pairs = []
    for word in words:
        pattern, equals, kind = word.partition("=")
        if not pattern or not equals or not kind:
            raise UsageError(f"{word!r} is not of the form RE=TYPE", hint=_OVERRIDE_HINT)
        try:
            re.compile(pattern.lower())
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}", hint=_OVERRIDE_HINT) from error
        pairs.append((pattern.lower(), tensor_type(kind)))
    return tuple(pairs)


def optional_tensor_type(text: str | None) -> T | None:
    return tensor_type(text) if text else None


def _facts(f: GGUFFile, has_imatrix: bool) -> recipes.Facts:
    arch, n_layer = f.architecture, f.block_count
    if n_layer < 1:
        raise IntegrityError(f"{f.path} has no {arch}.block_count, so it is no model that could be quantized")
    heads, heads_kv = _first(f, "attention.head_count"), _first(f, "attention.head_count_kv")
    is_70b = (arch, n_layer) in recipes.SEVENTY_B
    if arch in recipes.SEVENTY_B_ONLY_WITH_GQA:
        is_70b = is_70b and heads_kv is not None and heads != heads_kv
    n_expert = _first(f, "expert_count") or 0
    return recipes.Facts(arch, n_layer, n_expert, is_70b, has_imatrix)


def _first(f: GGUFFile, name: str) -> int | None:
    value = f.metadata.get(f"{f.architecture}.{name}")
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) else None


def _write_order(info: TensorInfo) -> tuple[int, str]:
    match = _LAYER.match(info.name)
    return (int(match[1]) if match else -1, info.name)


def _n_elements(shape: tuple[int, ...]) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing ones, as ggml counts dimensions."""
    n_dims = max((i + 1 for i, dim in enumerate(shape) if dim > 1), default=1)
    return shape[:n_dims]


def _row(f: GGUFFile, info: TensorInfo, kind: T, reason: str) -> TensorPlan:
    if kind is not info.type and info.shape[0] % block_elements(kind):
        raise UsageError(f"{f.path}: rows of {info.shape[0]} in {info.name!r} do not divide into blocks of {kind.name}")
    return TensorPlan(
        info.name, _trimmed(info.shape), info.type, kind, info.size_bytes, tensor_bytes(kind, info.n_elements), reason
    )


def _check_sources(f: GGUFFile, rows: tuple[TensorPlan, ...], options: Options) -> None:
    for row in rows:
        if row.type is row.source_type:
            continue
        if is_quantized(row.source_type) and not options.allow_requantize:
            raise UsageError(
                f"{f.path}: {row.name!r} is already quantized to {row.source_type.name}",
                hint="start from F16 or F32 for the best result, or add --allow-requantize",
            )


class _Chooser:
    """Walks the tensors in their order; some rules count how many of a kind came before."""

    def __init__(self, wanted: FileType, options: Options, facts: recipes.Facts, tensors: list[TensorInfo]) -> None:
        self.wanted, self.options, self.facts, self.tensors = wanted, options, facts, tensors
        self.patterns = [(re.compile(pattern), pattern, kind) for pattern, kind in options.tensor_type]
        self.is_tied = all(info.name != "output.weight" for info in tensors)
        self.n_attn_v = sum(recipes.category(info.name) == "attn_v" for info in tensors)
        self.seen = {"attn_v": 0, "ffn_up": 0, "ffn_gate": 0, "ffn_down": 0}

    def choose_all(self) -> dict[str, tuple[T, str]]:
        chosen: dict[str, tuple[T, str]] = {}
        followers = []
        for info in self.tensors:
            if self._follows(info) and self._override(info) is None:
                followers.append(info)
            else:
                chosen[info.name] = self._choose(info)
        for info in followers:
            chosen[info.name] = self._follow(info, chosen)
        return chosen

    def _choose(self, info: TensorInfo) -> tuple[T, str]:
        options, kind = self.options, recipes.category(info.name)
        shape = _trimmed(info.shape)
        if reason := recipes.kept(info.name, shape, self.facts.architecture, options.leave_output_tensor):
            return info.type, reason
        override = self._override(info)
        is_named = override is not None and info.name.startswith("per_layer_")
        if options.token_embedding_type is not None and kind == "token_embd" and not is_named:
            return options.token_embedding_type, "--token-embedding-type"
        if options.output_tensor_type is not None and kind == "output":
            return options.output_tensor_type, "--output-tensor-type"
        if not is_quantized(self.wanted.default):
            return self.wanted.default, "default"
        if override is not None:
            return self._fit(info, *override)
        if options.pure:
            return self._fit(info, self.wanted.default, "--pure")
        return self._fit(info, *self._by_recipe(info, kind))

    def _override(self, info: TensorInfo) -> tuple[T, str] | None:
        for pattern, text, kind in self.patterns:
            if pattern.search(info.name):
                return kind, f"--tensor-type {text}"
        return None

    def _by_recipe(self, info: TensorInfo, kind: str) -> tuple[T, str]:
        default, facts = self.wanted.default, self.facts
        if any(part in info.name for part in recipes.Q8_0_BY_ARCHITECTURE.get(facts.architecture, ())):
            return T.Q8_0, f"{facts.architecture}: at least Q8_0"
        if kind == "output" or (kind == "token_embd" and self.is_tied):
            if self.options.output_tensor_type is not None:
                return self.options.output_tensor_type, "--output-tensor-type"
            fits = info.shape[0] % block_elements(default) == 0
            return recipes.output_type(default, facts.architecture, fits)
        i, n = self._position(info, kind)
        return recipes.choose(self.wanted.name, default, kind, facts, i, n)

    def _position(self, info: TensorInfo, kind: str) -> tuple[int, int]:
        if kind not in self.seen:
            return 0, 0
        i = self.seen[kind]
        self.seen[kind] += 1
        if kind == "attn_v":
            return i, self.n_attn_v
        return (self._layer(info) if self.facts.n_expert > 1 else i), self.facts.n_layer

    def _layer(self, info: TensorInfo) -> int:
        match = _LAYER.match(info.name)
        layer = int(match[1]) if match else -1
        if not 0 <= layer < self.facts.n_layer:
            raise IntegrityError(f"tensor {info.name!r} belongs to none of the {self.facts.n_layer} layers")
        return layer

    def _follows(self, info: TensorInfo) -> tuple[str, tuple[str, ...]] | None:
        """(`blk.N.`, the names of the feed-forward tensors) for an adapter tensor."""
        prefix, _, rest = info.name.rpartition(".depth_")
        names = recipes.FOLLOWS.get(f"depth_{rest.removesuffix('.weight')}")
        return (f"{prefix}.", names) if prefix and names and len(_trimmed(info.shape)) > 1 else None

    def _follow(self, info: TensorInfo, chosen: dict[str, tuple[T, str]]) -> tuple[T, str]:
        prefix, names = self._follows(info) or ("", ())
        for name in names:
            if (leader := f"{prefix}{name}.weight") in chosen:
                return self._fit(info, chosen[leader][0], f"like {leader}")
        return self._fit(info, self.wanted.default, "default")

    def _fit(self, info: TensorInfo, kind: T, reason: str) -> tuple[T, str]:
        """What the row length allows."""
        n = info.shape[0]
        if n % block_elements(kind) == 0:
            return kind, reason
        fitting = recipes.FALLBACK.get(kind, kind)
        fitting = fitting if n % block_elements(fitting) == 0 else T.F16
        return fitting, f"{reason}; rows of {n} do not divide into blocks of {kind.name}"
