"""Ctypes over libggml-base: rows of numbers to blocks and back, exactly as llama.cpp's own tools do it.

Knows six functions that the stock and the patched library share. Knows nothing of models, files or threads; every call
is free of shared state and lets go of the interpreter's lock, so callers may use several threads.
ref: ggml/include/ggml.h
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import LiquidError
from .library import ON_ABORT

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


class _TypeTraits(ctypes.Structure):
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block_elements", ctypes.c_int64),
        ("block_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """libggml-base of the llama-cpp-python in use, or of `LLAMA_CPP_LIB_PATH`."""
    folder = _folder()
    path = next((folder / name for name in _NAMES if (folder / name).exists()), None)
    if path is None:
        raise LiquidError(f"there is no ggml library in {folder}", hint="liquid doctor shows what is installed")
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise LiquidError(f"the ggml library cannot be loaded: {error}", hint="liquid doctor") from error
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    for name in ("ggml_fp16_to_fp32_row", "ggml_bf16_to_fp32_row"):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        getattr(lib, name).restype = None
    with contextlib.suppress(AttributeError):  # the stock library of some platforms keeps it to itself
        lib.ggml_set_abort_callback(ON_ABORT)
    return lib


def stamp() -> str:
    """Tells one build of the library from another without reading it."""
    about = Path(library()._name).stat()
    return f"{about.st_size}-{about.st_mtime_ns}"


def _folder() -> Path:
    if override := os.environ.get("LLAMA_CPP_LIB_PATH"):
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise LiquidError("llama-cpp-python is not installed", hint="liquid doctor shows what is installed")
    return Path(spec.origin).parent / "lib"


def can_dequantize(kind: GGMLQuantizationType) -> bool:
    """Whether rows of this type can be turned into numbers."""
    if kind is GGMLQuantizationType.F32:
        return True
    return bool(library().ggml_get_type_traits(int(kind)).contents.to_float)


def dequantize(kind: GGMLQuantizationType, raw: np.ndarray) -> np.ndarray:  # [n_bytes] uint8 -> [n_elements] float32
    if kind is GGMLQuantizationType.F32:
        return raw.view("<f4")
    block, block_bytes = GGML_QUANT_SIZES[kind]
    numbers = np.empty(raw.size // block_bytes * block, np.float32)
    lib = library()
    rows = {GGMLQuantizationType.F16: lib.ggml_fp16_to_fp32_row, GGMLQuantizationType.BF16: lib.ggml_bf16_to_fp32_row}
    convert = rows.get(kind) or lib.ggml_get_type_traits(int(kind)).contents.to_float
    convert(raw.ctypes.data, numbers.ctypes.data, numbers.size)
    return numbers


def quantize(
    kind: GGMLQuantizationType,
    rows: np.ndarray,  # [n_rows, n_per_row] float32
    importance: np.ndarray | None = None,  # [n_per_row] float32
) -> np.ndarray:  # [n_bytes] uint8
    rows = np.ascontiguousarray(rows, np.float32)
    n_rows, n_per_row = rows.shape
    block, block_bytes = GGML_QUANT_SIZES[kind]
    raw = np.empty(n_rows * n_per_row // block * block_bytes, np.uint8)
    weights = None if importance is None else importance.ctypes.data
    library().ggml_quantize_chunk(int(kind), rows.ctypes.data, raw.ctypes.data, 0, n_rows, n_per_row, weights)
    return raw


def is_valid(kind: GGMLQuantizationType, raw: np.ndarray) -> bool:
    """False when a scale or a number is NaN or infinite."""
    return bool(library().ggml_validate_row_data(int(kind), raw.ctypes.data, raw.size))
