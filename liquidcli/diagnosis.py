"""What runs where and why, and the flag that changes it: facts about this machine, and findings drawn from them.

Asks the native library in a process of its own. Changes nothing, fetches nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__
from .amounts import size_text

_PROBE_LIMIT_S = 120
_LOW_DISK_BYTES = 2_000_000_000
_GPU_FILES = ("/dev/nvidia0", "/dev/kfd", "/proc/driver/nvidia/version")
# feature of the CPU, as Linux calls it -> the same, as the library calls it
_FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
_VARIABLES = (
    "LIQUID_HOME", "LIQUID_DEBUG", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "LLAMA_CPP_LIB_PATH",
    "CMAKE_ARGS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NO_COLOR",
)  # fmt: skip


def diagnose() -> dict[str, Any]:
    """All facts and findings, ready for JSON."""
    facts = {
        "liquid": {"version": __version__, "python": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "library": _library(),
        "cpu": _cpu(),
        "memory": _memory(),
        "folders": _folders(),
        "default_model": _default_model(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    return {**facts, "findings": list(_findings(facts))}


def _library() -> dict[str, Any]:
    command = [sys.executable, "-m", "liquidcli.llama.probe"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": "the native library does not answer", "hint": None}
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        return {"problem": f"the native library dies on this machine ({name}): built for another CPU", "hint": None}
    try:
        return json.loads(result.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"problem": f"the native library could not be asked: {last}", "hint": None}


def _cpu() -> dict[str, Any]:
    from .runtime.machine import usable_cores

    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    there = set(flags[1].split()) if flags else set()
    return {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "n_threads": usable_cores(),
        "features": [label for flag, label in _FEATURES.items() if flag in there],
        "amx": "amx_tile" in there,
    }


def _memory() -> dict[str, Any]:
    from .runtime.machine import available_bytes

    try:
        total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        total_bytes = None
    return {"total_bytes": total_bytes, "available_bytes": available_bytes()}


def _folders() -> dict[str, Any]:
    from .hub.home import hub_cache, liquid_home

    return {"home": _folder(liquid_home()), "hub_cache": _folder(hub_cache())}


def _folder(path: Path) -> dict[str, Any]:
    there = path
    while not there.exists():
        there = there.parent
    writable = os.access(there, os.W_OK)
    return {
        "path": str(path),
        "exists": path.exists(),
        "writable": writable,
        "free_bytes": shutil.disk_usage(there).free,
    }


def _default_model() -> dict[str, Any]:
    from .gates import builtin_pack_for
    from .hub import default_model

    path, pack = default_model.stored(), builtin_pack_for(default_model.SHA256)
    told = {"name": default_model.ALIAS, "path": path and str(path), "gates": pack and pack.name}
    return {**told, "memory": _need(path, pack) if path else None}


def _need(path: Path, pack: Path | None) -> dict[str, Any] | None:
    """What a chat with this model and these gates takes; None for a file that cannot be read."""
    from .errors import LiquidError
    from .gguf_file import open_gguf
    from .runtime.info import DEFAULT_CTX, trained_context
    from .runtime.kv_share import kept_share
    from .runtime.machine import memory_need

    try:
        with open_gguf(path) as f:
            metadata, size_bytes, tensors = dict(f.metadata), f.size_bytes, tuple(f.tensors.values())
        if pack:
            with open_gguf(pack) as f:
                metadata |= {key: value for key, value in f.metadata.items() if key.startswith("liquid.depth.")}
    except LiquidError:
        return None
    n_ctx = min(trained_context(metadata), DEFAULT_CTX)
    full, kept = (
        memory_need(metadata, size_bytes, tensors, n_ctx=n_ctx, n_ubatch=512, n_outputs=1, kv_share=share)
        for share in (1.0, kept_share(metadata))
    )
    policy = metadata.get("liquid.depth.kv_policy", "none")
    sizes = {"total_bytes": kept.total_bytes, "kv_bytes": kept.kv_bytes, "kv_bytes_full": full.kv_bytes}
    return {"n_ctx": n_ctx, "kv_policy": policy, **sizes}


def _findings(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Each with a level (problem, note), what was found, and what changes it."""
    library = facts["library"]
    if library.get("problem"):
        yield _finding("problem", library["problem"], library.get("hint") or "make setup builds it for this machine")
    else:
        yield from _about_devices(library)
        yield from _about_cpu(library, facts["cpu"])
    yield from _about_folders(facts)
    if not facts["default_model"]["path"]:
        yield _finding("note", "the default model is not here yet", "liquid pull")
    if not facts["default_model"]["gates"]:
        yield _finding("note", "no gates are built in for the default model", "liquid gates train, then --gates PACK")
    yield from _about_memory(facts)
    if "LLAMA_CPP_LIB_PATH" in facts["environment"]:
        yield _finding("note", "LLAMA_CPP_LIB_PATH chooses the native library", "unset LLAMA_CPP_LIB_PATH")
    if facts["environment"].get("HF_HUB_OFFLINE", "0").lower() in ("1", "on", "yes", "true"):
        yield _finding("note", "nothing is fetched from the hub: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")


def _about_devices(library: dict[str, Any]) -> Iterator[dict[str, str]]:
    gpus = [device["description"] for device in library["devices"] if device["kind"] in ("gpu", "igpu")]
    rebuild = "CMAKE_ARGS=-DGGML_CUDA=on (or -DGGML_VULKAN=on, -DGGML_METAL=on) when installing ./llamacpp"
    if gpus:
        what = f"layers go to {', '.join(gpus)}; there skipped layers are computed and masked, which saves no time"
        yield _finding("note", what, "-ngl 0 keeps them on the CPU, where a skipped layer is not read")
    elif any(Path(path).exists() for path in _GPU_FILES):
        yield _finding("problem", "there is a GPU, and the library was built without support for it", rebuild)
    else:
        yield _finding("note", "everything runs on the CPU: no GPU was found", rebuild)


def _about_cpu(library: dict[str, Any], cpu: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield _finding("note", f"{cpu['n_threads']} threads compute, one per core this process may use", "-t N")
    unused = [name for name in cpu["features"] if name not in library["features"]]
    if unused:
        what = f"the library was built without {', '.join(unused)}, which this CPU has"
        yield _finding("problem", what, "CMAKE_ARGS=-DGGML_NATIVE=on when installing ./llamacpp")
    if "AMX_INT8" in library["features"] and library.get("amx_allowed") is False:
        what = "the library uses AMX and this system refuses it: the first matrix product will crash"
        yield _finding("problem", what, "install ./llamacpp without -DLIQUID_AMX=on")
    elif cpu["amx"] and "AMX_INT8" not in library["features"]:
        refused = ", and this system refuses it" if library.get("amx_allowed") is False else ""
        yield _finding(
            "note", f"AMX is not used: it is left out unless asked for{refused}", "CMAKE_ARGS=-DLIQUID_AMX=on"
        )


def _about_memory(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    need, available = facts["default_model"].get("memory"), facts.get("memory", {}).get("available_bytes")
    if not need:
        return
    total, cache, full = (size_text(need[name]) for name in ("total_bytes", "kv_bytes", "kv_bytes_full"))
    if available is not None and need["total_bytes"] > available:
        what = f"the default model takes {total} at {need['n_ctx']} tokens and {size_text(available)} are available"
        yield _finding("problem", what, "a smaller context: -c N; liquid fit tells which fits")
    if need["kv_policy"] == "drop":
        what = f"skipped layers drop keys and values: {need['n_ctx']} tokens take {cache}, {full} at full depth"
        yield _finding("note", what, "--depth full keeps all of them, --depth NN% drops more or fewer")
    elif need["kv_policy"] == "project":
        what = f"skipped layers keep keys and values: {need['n_ctx']} tokens take {cache} at any depth"
        yield _finding("note", what, "gates that drop them: liquid gates train --kv drop, then --gates PACK")


def _about_folders(facts: dict[str, Any]) -> Iterator[dict[str, str]]:
    for name, variable in (("home", "LIQUID_HOME"), ("hub_cache", "HF_HOME")):
        folder = facts["folders"][name]
        if not folder["writable"]:
            yield _finding("problem", f"{folder['path']} cannot be written to", f"set {variable} to another folder")
        elif folder["free_bytes"] < _LOW_DISK_BYTES:
            free = size_text(folder["free_bytes"])
            yield _finding("problem", f"only {free} are free at {folder['path']}", f"liquid prune, or set {variable}")


def _finding(level: str, what: str, change: str) -> dict[str, str]:
    return {"level": level, "what": what, "change": change}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
