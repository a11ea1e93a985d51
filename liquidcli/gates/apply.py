"""A base and a gate pack become one liquid model: the base's tensors byte for byte, the gates beside them.

Knows which keys `liquid` needs that llama.cpp otherwise derives from an architecture's name, and which type an adapter
gets. Knows nothing of training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

from ..errors import IntegrityError, UsageError, quote
from ..files import atomic_output, check_apart
from ..gguf_file import GGUFFile, check_loadable, open_gguf
from ..quant.types import NEEDS_IMATRIX
from . import container
from .container import Tensor
from .identity import check_is_model
from .pack import SKIP_TENSORS, Pack, check_belongs, read_pack
from .stock import WORDS, derived_keys

Progress = Callable[[int, int, str], None]

_FFN = {"depth_skip_gate": "ffn_gate", "depth_skip_up": "ffn_up", "depth_skip_down": "ffn_down"}
# what a type becomes where a row does not divide into its blocks, as llama-quantize does; F16 where that fails too
_FALLBACK = {T.Q2_K: T.Q4_0, T.Q3_K: T.Q4_0, T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0, T.IQ4_XS: T.IQ4_NL}
_FALLBACK |= dict.fromkeys(NEEDS_IMATRIX, T.IQ4_NL)  # no importance matrix knows an adapter
_PLAIN: dict[T, np.dtype] = {T.F32: np.dtype("<f4"), T.F16: np.dtype("<f2")}
_NOT_OF_A_MODEL = ("split.no", "split.count", "split.tensors.count")


def apply_pack(base: Path | str, pack: Path | str, out: Path | str, progress: Progress | None = None) -> dict[str, Any]:
    """Write `out`, the liquid model of `base` and `pack`; IntegrityError if the pack was made for another base."""
    base, out = Path(base), Path(out)
    gates = read_pack(pack)
    with open_gguf(base) as f:
        check_base(f, gates)
        check_apart(out, *f.paths, Path(pack))
        added, types = _depth_tensors(f, gates)
        tensors = [_base_tensor(f, name, gates) for name in f.tensors] + added
        keys = _keys(f, gates)
        with atomic_output(out, container.size_bytes(keys, tensors, f.alignment)) as part, part.open("wb") as file:
            container.write(file, keys, tensors, f.alignment, progress)
    return {
        "input": str(base),
        "pack": str(pack),
        "output": str(out),
        "size_bytes": out.stat().st_size,
        "gates": len(gates.depth.layout.gates()),
        "adapter_types": sorted(set(types.values())),
        "merged": sorted(gates.lora),
        "fallbacks": {name: kind for name, kind in types.items() if kind != _asked(tensors, name)},
    }


def _asked(tensors: list[Tensor], adapter: str) -> str:
    _, layer, role, _ = adapter.split(".")
    wanted = {f"blk.{layer}.{_FFN[role]}{suffix}.weight" for suffix in ("", "_exps")}
    return next(t.type.name for t in tensors if t.name in wanted)


def check_base(f: GGUFFile, gates: Pack) -> None:
    """Raise unless `f` is the base that `gates` was made for."""
    check_is_model(f)
    if "liquid.depth.gate_span" in f.metadata:
        raise UsageError(f"{f.path} is a model with gates already; a gate pack is applied to the plain base")
    if f.architecture not in WORDS:
        raise UsageError(
            f"{f.path} has the architecture {quote(f.architecture)}; packs can be applied to {', '.join(WORDS)}"
        )
    check_loadable(f, need_tokenizer=False)
    check_belongs(gates, f)
    for name in gates.lora:
        if name not in f.tensors:
            raise IntegrityError(f"{gates.path or 'the gate pack'} updates {quote(name)}, which {f.path} has not")


def _keys(f: GGUFFile, gates: Pack) -> dict[str, bytes]:
    """The base's keys, renamed, then what `liquid` must be told, then the gates'."""
    old, arch = f"{f.architecture}.", "liquid."
    keys = {}
    for key in f.metadata:
        if key not in _NOT_OF_A_MODEL:
            keys[arch + key.removeprefix(old) if key.startswith(old) else key] = f.raw_value(key)
    keys["general.architecture"] = container.value(V.STRING, "liquid")
    keys |= {arch + key: _typed(value) for key, value in derived_keys(f).items()}
    return keys | gates.depth.keys()


def _typed(value: str | bool | int | float | list[bool]) -> bytes:
    if isinstance(value, list):
        return container.array(V.BOOL, value)
    kinds = {str: V.STRING, bool: V.BOOL, int: V.UINT32, float: V.FLOAT32}
    return container.value(kinds[type(value)], value)


def _base_tensor(f: GGUFFile, name: str, gates: Pack) -> Tensor:
    info = f.tensors[name]
    if name not in gates.lora:
        return Tensor(name, info.shape, info.type, info.size_bytes, lambda: f.raw(name))
    a, b = gates.lora[name]
    if (b.shape[0], a.shape[1]) != info.shape[::-1]:
        raise IntegrityError(f"the low-rank update of {quote(name)} does not fit its shape {list(info.shape)}")
    if info.type in NEEDS_IMATRIX:
        found = f"the low-rank update of {quote(name)} cannot be merged: {info.type.name} needs an importance matrix"
        raise UsageError(found, hint="apply the pack to the F16 file, then liquid quantize with --imatrix FILE")
    return Tensor(name, info.shape, info.type, info.size_bytes, lambda: encode(f.array(name) + b @ a, info.type))


def _depth_tensors(f: GGUFFile, gates: Pack) -> tuple[list[Tensor], dict[str, str]]:
    tensors, types = [], {}
    for name, content in gates.tensors.items():
        role = name.split(".")[2] if name.startswith("blk.") else ""
        if role in SKIP_TENSORS:
            kind = adapter_type(f, name, content.shape[-1])
            types[name] = kind.name
        elif ".depth_gate" in name:
            kind = T.F32
        else:
            continue
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = content.size // block * block_bytes
        tensors.append(Tensor(name, content.shape[::-1], kind, size, functools.partial(encode, content, kind)))
    return tensors, types


def adapter_type(f: GGUFFile, name: str, row: int) -> T:
    """The type of the feed-forward tensor beside it, or the first fallback that can be made and divides a row."""
    layer, role = name.split(".")[1:3]
    beside = [f"blk.{layer}.{_FFN[role]}{suffix}.weight" for suffix in ("", "_exps")]
    found = next((f.tensors[tensor].type for tensor in beside if tensor in f.tensors), None)
    if found is None:
        raise IntegrityError(f"{f.path} has no {beside[0]}, so the type of {quote(name)} is not known")
    kind = found
    while row % GGML_QUANT_SIZES[kind][0] or kind in NEEDS_IMATRIX:
        kind = _FALLBACK.get(kind, T.F16)
    return kind


def encode(content: np.ndarray, kind: T) -> np.ndarray:  # float32, numpy order -> bytes of that type
    if kind in _PLAIN:
        return np.ascontiguousarray(content, _PLAIN[kind]).view(np.uint8).reshape(-1)
    from ..llama import ggml

    return ggml.quantize(kind, content.reshape(-1, content.shape[-1]))
