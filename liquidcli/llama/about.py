"""What the library says: of a model, and of the backends and devices it can compute on.

Knows the registry of ggml. Does not choose a device.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from . import library
from .model import Model

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


@dataclass(frozen=True)
class Device:
    """One entry of the registry; `free_bytes` and `total_bytes` are 0 where the backend does not say."""

    name: str
    description: str
    kind: str
    backend: str
    free_bytes: int
    total_bytes: int


def model_type(model: Model) -> str:
    """Architecture, size class and quantization in llama.cpp's words, like `llama 1B Q4_0`."""
    lib = library.load()
    buffer = ctypes.create_string_buffer(128)
    lib.llama_model_desc(model.pointer, buffer, len(buffer))
    return _text(buffer.value)


@functools.cache
def _ggml() -> Any:
    library.load()
    from llama_cpp._ggml import libggml

    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_backend_dev_count", ctypes.c_size_t, []),
        ("ggml_backend_dev_get", pointer, [ctypes.c_size_t]),
        ("ggml_backend_dev_name", text, [pointer]),
        ("ggml_backend_dev_description", text, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_dev_backend_reg", pointer, [pointer]),
        ("ggml_backend_reg_name", text, [pointer]),
        ("ggml_backend_dev_memory", None, [pointer, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]),
    ):
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, arguments
    return libggml


def devices() -> list[Device]:
    """Every device of every backend in the library, in its order."""
    ggml = _ggml()
    return [_device(ggml, ggml.ggml_backend_dev_get(i)) for i in range(ggml.ggml_backend_dev_count())]


def _device(ggml: Any, pointer: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(pointer, ctypes.byref(free), ctypes.byref(total))
    kind = ggml.ggml_backend_dev_type(pointer)
    return Device(
        name=_text(ggml.ggml_backend_dev_name(pointer)),
        description=_text(ggml.ggml_backend_dev_description(pointer)),
        kind=_KINDS[kind] if kind < len(_KINDS) else "other",
        backend=_text(ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(pointer))),
        free_bytes=free.value,
        total_bytes=total.value,
    )


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
