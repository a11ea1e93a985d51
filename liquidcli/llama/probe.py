"""`python -m liquidcli.llama.probe`: what the native library is and sees, as one JSON object on stdout.

A process of its own, because a library built for another CPU may die here. Loads no model.
ref: ggml/include/ggml-backend.h
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from importlib import metadata
from typing import Any

from ..errors import LiquidError
from . import library

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type
_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158  # ref: linux Documentation/arch/x86/xstate.rst


def probe() -> dict[str, Any]:
    """version, and either what is loaded or why nothing is."""
    about: dict[str, Any] = {"version": _version(), "amx_allowed": amx_allowed()}
    try:
        bindings = library.load()
    except LiquidError as error:
        return {**about, "problem": error.message, "hint": error.hint}
    system = bindings.llama_print_system_info().decode("utf-8", "replace")
    return {
        **about,
        "path": str(bindings._lib._name),
        "stamp": library.build_stamp(),
        "features": sorted({part.split("=")[0].split(":")[-1].strip() for part in system.split("|") if "= 1" in part}),
        "gpu_offload": bool(bindings.llama_supports_gpu_offload()),
        "devices": devices(bindings._lib),
    }


def devices(lib: ctypes.CDLL) -> list[dict[str, Any]]:
    """What ggml can compute on."""
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("name", "description"):
        getattr(lib, f"ggml_backend_dev_{name}").restype = ctypes.c_char_p
        getattr(lib, f"ggml_backend_dev_{name}").argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    lib.ggml_backend_dev_memory.restype = None
    return [_device(lib, lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]


def _device(lib: ctypes.CDLL, device: int) -> dict[str, Any]:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    kind = lib.ggml_backend_dev_type(device)
    return {
        "name": lib.ggml_backend_dev_name(device).decode("utf-8", "replace"),
        "description": lib.ggml_backend_dev_description(device).decode("utf-8", "replace"),
        "kind": _KINDS[kind] if 0 <= kind < len(_KINDS) else str(kind),
        "memory_free_bytes": free.value,
        "memory_total_bytes": total.value,
    }


def amx_allowed() -> bool | None:
    """Does the kernel let a process use AMX? None where it cannot be asked (another system, another CPU)."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0


def _version() -> str | None:
    try:
        return metadata.version("llama_cpp_python")
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(probe()))
