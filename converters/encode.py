"""Numbers of a checkpoint's type to the bytes of a GGUF type: exact where it can be, ggml's rounding where not.

Refuses numbers that are not finite, before and after.
"""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import quants

from liquidcli.errors import IntegrityError

_SAME = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
_F16_MAX = 65504.0
_PIECE_ITEMS = 1 << 20  # a multiple of every block
# Q8_0 keeps a block's largest magnitude / 127 as F16
_LARGEST = {GGMLType.F16: _F16_MAX, GGMLType.Q8_0: 127 * _F16_MAX}


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """`dtype` is safetensors' spelling; BF16 comes as uint16 bits."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def encode(values: np.ndarray, dtype: str, kind: GGMLType, name: str) -> np.ndarray:
    """An array that holds the bytes of `kind` in order; its shape says nothing."""
    if not _is_finite(values, dtype):
        raise IntegrityError(f"{name} holds values that are not finite numbers")
    if _SAME.get(dtype) is kind:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(to_float32(values, dtype))
        if not _fits(numbers, kind):
            raise IntegrityError(
                f"{name} holds values beyond the range of {kind.name}", hint="use --outtype bf16 or f32"
            )
        return _quantize(numbers, kind)


def _quantize(numbers: np.ndarray, kind: GGMLType) -> np.ndarray:
    """Blocks know nothing of rows, so long pieces are quantized at once, whatever the rows' length."""
    if kind in (GGMLType.F32, GGMLType.F16):
        return quants.quantize(numbers, kind)
    flat = numbers.reshape(1, -1)
    pieces = [flat[:, first : first + _PIECE_ITEMS] for first in range(0, flat.size, _PIECE_ITEMS)]
    return np.concatenate([quants.quantize(piece, kind) for piece in pieces], axis=1)


def _is_finite(values: np.ndarray, dtype: str) -> bool:
    if dtype == "BF16":
        return not np.any((values & 0x7F80) == 0x7F80)
    return bool(np.isfinite(values).all())


def _fits(numbers: np.ndarray, kind: GGMLType) -> bool:
    largest = float(np.abs(numbers).max(initial=0.0))
    return largest <= _LARGEST.get(kind, float(np.finfo(np.float32).max))
