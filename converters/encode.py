"""Numbers of a checkpoint's type to the bytes of a GGUF type: exact where it can be, ggml's rounding where not.

Refuses numbers that are not finite, before and after.
"""

from __future__ import annotations

import functools

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import quants

from liquidcli.errors import IntegrityError

_SAME = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
_F16_MAX = 65504.0
_PIECE_ITEMS = 1 << 18  # a multiple of every block; what is computed stays in the processor's cache
# Q8_0 keeps a block's largest magnitude / 127 as F16
_LARGEST = {GGMLType.F16: _F16_MAX, GGMLType.Q8_0: 127 * _F16_MAX}
_BITS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
_BELOW_HALF = np.float32(np.nextafter(np.float32(0.5), np.float32(0)))


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """`dtype` is safetensors' spelling; BF16 comes as uint16 bits."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def encode(values: np.ndarray, dtype: str, kind: GGMLType, name: str) -> np.ndarray:
    """An array that holds the bytes of `kind` in order; its shape says nothing."""
    values = np.ascontiguousarray(values)
    largest = _largest(values, dtype)
    if not np.isfinite(largest):
        raise IntegrityError(f"{name} holds values that are not finite numbers")
    if largest > _LARGEST.get(kind, float(np.finfo(np.float32).max)):
        raise IntegrityError(f"{name} holds values beyond the range of {kind.name}", hint="use --outtype bf16 or f32")
    if _SAME.get(dtype) is kind:
        return values
    if (dtype, kind) == ("BF16", GGMLType.F16):
        return _f16_of_bf16()[values]
    if kind in (GGMLType.F32, GGMLType.F16):
        return quants.quantize(to_float32(values, dtype), kind)
    flat = values.reshape(-1)
    pieces = (flat[first : first + _PIECE_ITEMS] for first in range(0, flat.size, _PIECE_ITEMS))
    return np.concatenate([_quantize(to_float32(piece, dtype), kind) for piece in pieces])


def _largest(values: np.ndarray, dtype: str) -> float:
    """The largest magnitude; infinity or NaN if there is one. Without the sign, bits have their numbers' order."""
    bits = values.view(_BITS[dtype])
    without_sign = bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
    top = (bits & without_sign).max(initial=0)
    return float(to_float32(top, dtype) if dtype == "BF16" else top.view(values.dtype))


@functools.cache
def _f16_of_bf16() -> np.ndarray:
    """Every BF16, by its bits."""
    with np.errstate(over="ignore"):
        return to_float32(np.arange(1 << 16, dtype=np.uint16), "BF16").astype("<f2")


def _quantize(numbers: np.ndarray, kind: GGMLType) -> np.ndarray:
    """Blocks know nothing of rows, so long pieces are quantized at once, whatever the rows' length."""
    if kind is GGMLType.Q8_0:
        return _q8_0(numbers)
    return quants.quantize(numbers.reshape(1, -1), kind).reshape(-1)


def _q8_0(numbers: np.ndarray) -> np.ndarray:
    """d = largest magnitude / 127, qs = x / d rounded half away from zero. ref: ggml, quantize_row_q8_0"""
    blocks = numbers.reshape(-1, 32)
    largest = np.abs(blocks)
    for width in (16, 8, 4, 2, 1):
        largest = np.maximum(largest[:, :width], largest[:, width:])
    out = np.empty(len(blocks), _Q8_0)
    d = largest / np.float32(127)
    out["d"] = d[:, 0]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = blocks * np.where(d == 0, np.float32(0), np.float32(1) / d)
        scaled += np.copysign(_BELOW_HALF, scaled)  # then cut: exact, unlike adding a whole half
        out["qs"] = scaled
    return out.view(np.uint8)
