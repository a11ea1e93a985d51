"""Every tensor's type and the reason for it: the rules of `recipes` in llama-quantize's order, and what options change.

Knows names and shapes. Opens nothing and counts no bytes.
"""

from __future__ import annotations

import re
from typing import Any

from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.gguf_file import GGUFFile, TensorInfo

from . import recipes
from .options import Options
from .types import COPY, FileType, block_elements, is_quantized

_LAYER = re.compile(r"blk\.(-?\d+)")


def layer_of(name: str) -> int:
    """-1 for a tensor of no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without trailing ones, as ggml counts dimensions."""
    n_dims = max((i + 1 for i, dim in enumerate(shape) if dim > 1), default=1)
    return shape[:n_dims]


def facts_of(f: GGUFFile, options: Options, has_imatrix: bool) -> recipes.Facts:
    metadata = {**f.metadata, **dict(options.override_kv)}
    arch = str(metadata.get("general.architecture", f.architecture))

    def first(name: str, default: int) -> int:
        value: Any = metadata.get(f"{arch}.{name}")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) else default

    n_layer = first("block_count", 0)
    if n_layer < 1:
        raise IntegrityError(f"{f.path} has no {arch}.block_count, so it is no model that could be quantized")
    heads = first("attention.head_count", 0)
    heads_kv = first("attention.head_count_kv", heads)
    is_70b = (arch, n_layer) in recipes.SEVENTY_B
    if arch in recipes.SEVENTY_B_ONLY_WITH_GQA:
        is_70b = is_70b and heads != heads_kv
    n_gqa = heads // heads_kv if heads_kv > 0 else 0
    return recipes.Facts(arch, n_layer, first("expert_count", 0), n_gqa, is_70b, has_imatrix)


class Chooser:
    """Walks the tensors in their order; some rules count how many of a kind came before."""

    def __init__(self, wanted: FileType, options: Options, facts: recipes.Facts, tensors: list[TensorInfo]) -> None:
        self.wanted, self.options, self.facts, self.tensors = wanted, options, facts, tensors
        self.patterns = [(re.compile(pattern), pattern, kind) for pattern, kind in options.tensor_type]
        self.is_tied = all(info.name != "output.weight" for info in tensors)
        self.n_attn_v = sum(recipes.category(info.name) == "attn_v" for info in tensors)
        self.seen = {"attn_v": 0, "ffn_up": 0, "ffn_gate": 0, "ffn_down": 0}

    def choose_all(self) -> dict[str, tuple[T, str]]:
        self._check_patterns()
        chosen: dict[str, tuple[T, str]] = {}
        followers = []
        for info in self.tensors:
            if self.wanted is not COPY and self._follows(info) and self._override(info) is None:
                followers.append(info)
            else:
                chosen[info.name] = self._choose(info)
        for info in followers:
            chosen[info.name] = self._follow(info, chosen)
        return chosen

    def _check_patterns(self) -> None:
        for pattern, text, _ in self.patterns:
            if not any(pattern.search(info.name) for info in self.tensors):
                names = ", ".join(info.name for info in self.tensors[:3])
                raise UsageError(
                    f"{text!r} matches none of the {len(self.tensors)} tensors", hint=f"names are {names} ..."
                )

    def _choose(self, info: TensorInfo) -> tuple[T, str]:
        options, kind = self.options, recipes.category(info.name)
        shape = trimmed(info.shape)
        if self.wanted is COPY:
            return info.type, "copied"
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
            return recipes.output_type(self.wanted.name, facts.architecture, fits)
        return recipes.choose(self.wanted.name, default, kind, facts, self._place(info, kind))

    def _place(self, info: TensorInfo, kind: str) -> recipes.Place:
        n_matrices = info.shape[2] if len(info.shape) > 2 else 1
        if kind not in self.seen:
            return recipes.Place(n_matrices=n_matrices)
        seen = self.seen[kind]
        self.seen[kind] += 1
        if kind == "attn_v":
            return recipes.Place(seen, self.n_attn_v, seen, n_matrices)
        i = self._layer(info) if self.facts.n_expert > 1 else seen
        return recipes.Place(i, self.facts.n_layer, seen, n_matrices)

    def _layer(self, info: TensorInfo) -> int:
        layer = layer_of(info.name)
        if not 0 <= layer < self.facts.n_layer:
            raise IntegrityError(f"tensor {info.name!r} belongs to none of the {self.facts.n_layer} layers")
        return layer

    def _follows(self, info: TensorInfo) -> tuple[str, tuple[str, ...]] | None:
        """(`blk.N.`, the names of the feed-forward tensors) for an adapter tensor."""
        prefix, _, rest = info.name.rpartition(".depth_")
        names = recipes.FOLLOWS.get(f"depth_{rest.removesuffix('.weight')}")
        return (f"{prefix}.", names) if prefix and names and len(trimmed(info.shape)) > 1 else None

    def _follow(self, info: TensorInfo, chosen: dict[str, tuple[T, str]]) -> tuple[T, str]:
        prefix, names = self._follows(info) or ("", ())
        for name in names:
            if (leader := f"{prefix}{name}.weight") in chosen:
                return self._fit(info, self._alone(chosen[leader][0]), f"like {leader}")
        return self._fit(info, self._alone(self.wanted.default), "default")

    def _alone(self, kind: T) -> T:
        """MXFP4 is for experts; an adapter is none."""
        return T.Q8_0 if kind is T.MXFP4 and self.wanted.name == "MXFP4_MOE" else kind

    def _fit(self, info: TensorInfo, kind: T, reason: str) -> tuple[T, str]:
        """What the row length allows."""
        n = info.shape[0]
        if n % block_elements(kind) == 0:
            return kind, reason
        fitting = recipes.FALLBACK.get(kind, kind)
        fitting = fitting if n % block_elements(fitting) == 0 else T.F16
        return fitting, f"{reason}; rows of {n} do not divide into blocks of {kind.name}"
