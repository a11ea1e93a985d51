"""What a GGUF says about itself, for `show`: numbers, metadata, where its gates are, its tensors and their roles.

Reads an open file. Does not judge whether llama.cpp would load it.
"""

from __future__ import annotations

import re
from typing import Any

from .gguf_file import GGUFFile, TensorInfo

LONG_ARRAY = 32  # a vocabulary is no reading matter
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_HALVES = {"attn": "depth_gate_attn", "ffn": "depth_gate_ffn"}


def describe(f: GGUFFile) -> dict[str, Any]:
    """architecture, parameters, size_bytes, file_type, metadata, depth, exit_layers."""
    return {
        "path": str(f.path),
        "architecture": f.architecture,
        "name": f.metadata.get("general.name"),
        "parameters": sum(tensor.n_elements for tensor in f.tensors.values()),
        "size_bytes": f.size_bytes,
        "file_type": file_type(f),
        "metadata": {key: _short(value) for key, value in f.metadata.items()},
        "depth": depth(f),
        "exit_layers": exit_layers(f),
    }


def tensors(f: GGUFFile) -> list[dict[str, Any]]:
    """Every tensor with the role the file gives it; where it gives none, the name tells."""
    told = _told_roles(f)
    return [
        {
            "name": t.name,
            "shape": list(t.shape),
            "type": t.type.name,
            "role": told.get(t.name) or role(t.name),
            "size_bytes": t.size_bytes,
        }
        for t in f.tensors.values()
    ]


def _told_roles(f: GGUFFile) -> dict[str, str]:
    names, roles = (f.metadata.get(f"liquid.role.{key}") for key in ("tensors", "names"))
    if not isinstance(names, list) or not isinstance(roles, list) or len(names) != len(roles):
        return {}
    return {str(name): str(role) for name, role in zip(names, roles, strict=True)}


def role(name: str) -> str:
    """`blk.3.attn_v.weight` -> `attn_v`"""
    match = _BLOCK.fullmatch(name)
    return (match[2] if match else name).removesuffix(".weight").removesuffix(".bias")


def file_type(f: GGUFFile) -> str:
    """The name of the recipe, by the key quantizers write; else the type most of the bytes have."""
    from gguf import LlamaFileType

    try:
        return LlamaFileType(f.metadata.get("general.file_type", -1)).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        sizes: dict[str, int] = {}
        for tensor in f.tensors.values():
            sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size_bytes
        return max(sizes, key=lambda name: sizes[name], default="unknown")


def exit_layers(f: GGUFFile) -> list[int] | None:
    """After how many layers norm and head were trained to read; no gate acts on it."""
    layers = f.metadata.get("liquid.exit_layers")
    return layers if isinstance(layers, list) else None


def depth(f: GGUFFile) -> dict[str, Any] | None:
    """The `liquid.depth.*` keys and every gate with its layer; None where there are no gates."""
    keys = {
        key.removeprefix("liquid.depth."): value for key, value in f.metadata.items() if key.startswith("liquid.depth.")
    }
    if "gate_span" not in keys:
        return None
    gates = [gate for layer, span in enumerate(keys["gate_span"]) if span for gate in _gates(f, keys, layer, span)]
    arrays = ("gate_span", "gate_scope", "gate_exit", "calibration.threshold", "calibration.executed_fraction")
    return {
        **{key: value for key, value in keys.items() if key not in arrays},
        "layers_total": len(keys["gate_span"]),
        "calibration": _calibration(keys),
        "gates": gates,
    }


def _gates(f: GGUFFile, keys: dict[str, Any], layer: int, span: int) -> list[dict[str, Any]]:
    scopes = str(_at(keys.get("gate_scope"), layer, "") or "layer").split("+")
    adapter = f.tensors.get(f"blk.{layer}.depth_skip_up.weight")
    return [
        {
            "layer": layer,
            "span": span,
            "scope": scope,
            "exit": bool(_at(keys.get("gate_exit"), layer, False)),
            "adapter_size": adapter.shape[1] if adapter and scope != "attn" else None,
            "size_bytes": sum(t.size_bytes for t in f.tensors.values() if _belongs(t, layer, scope)),
        }
        for scope in scopes
    ]


def _belongs(tensor: TensorInfo, layer: int, scope: str) -> bool:
    own = _HALVES.get(scope, "depth_gate")
    match = _BLOCK.fullmatch(tensor.name)
    return (
        match is not None and int(match[1]) == layer and re.match(rf"{own}(_enc|_norm|_dec)?\.", match[2]) is not None
    )


def _calibration(keys: dict[str, Any]) -> list[dict[str, float]] | None:
    thresholds, fractions = keys.get("calibration.threshold"), keys.get("calibration.executed_fraction")
    if not thresholds or not fractions:
        return None
    return [{"threshold": t, "executed_fraction": e} for t, e in zip(thresholds, fractions, strict=False)]


def _at(values: Any, layer: int, default: Any) -> Any:
    return values[layer] if isinstance(values, list) and layer < len(values) else default


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > LONG_ARRAY:
        return {"length": len(value), "first": value[:3]}
    return value
