"""llamacpp/src/liquid.h, line by line, and the few calls the runtime makes with it.

Knows struct layouts and array shapes. Does not know what a threshold means (`liquidcli.runtime.depth` does).
"""

from __future__ import annotations

import ctypes
import enum
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import library


class GateKind(enum.IntEnum):
    LINEAR = 0
    BOTTLENECK = 1


class KVPolicy(enum.IntEnum):
    PROJECT = 0
    DROP = 1


class Scope(enum.IntEnum):
    LAYER = 0
    ATTN = 1
    FFN = 2


class Mode(enum.IntEnum):
    AUTO = 0
    FULL = 1
    THRESHOLD = 2
    FORCED = 3


class ExecutionEngine(enum.IntEnum):
    AUTO = 0
    FLAGS = 1
    DENSE = 2


class ModelInfo(ctypes.Structure):
    _fields_ = [
        ("n_layer", ctypes.c_int32),
        ("n_gate", ctypes.c_int32),
        ("gate_kind", ctypes.c_int32),
        ("kv_policy", ctypes.c_int32),
        ("threshold", ctypes.c_float),
        ("ffn_scaled_by_gate", ctypes.c_int32),
        ("adapter_scaled_by_gate", ctypes.c_int32),
        ("min_layers", ctypes.c_int32),
        ("always_run_tokens", ctypes.c_int32),
        ("n_expert", ctypes.c_int32),
        ("n_expert_used", ctypes.c_int32),
        ("n_moe_layer", ctypes.c_int32),
    ]


class Gate(ctypes.Structure):
    _fields_ = [
        ("layer", ctypes.c_int32),
        ("span", ctypes.c_int32),
        ("scope", ctypes.c_int32),
        ("is_exit", ctypes.c_int32),
    ]


class Stats(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int64),
        ("n_layer_runs", ctypes.c_double),
        ("n_gate_evals", ctypes.c_int64),
        ("n_gate_runs", ctypes.c_int64),
        ("n_expert_hits", ctypes.c_int64),
        ("n_blocks_unread", ctypes.c_int64),
    ]


_I32, _I64, _F32, _U8, _P = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_uint8, ctypes.c_void_p
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {  # name: (result, arguments)
    "liquid_api_version": (_I32, []),
    "liquid_build_stamp": (ctypes.c_char_p, []),
    "liquid_get_model_info": (_I32, [_P, ctypes.POINTER(ModelInfo)]),
    "liquid_get_gate": (_I32, [_P, _I32, ctypes.POINTER(Gate)]),
    "liquid_set_depth": (_I32, [_P, _I32, _F32]),
    "liquid_get_depth": (_I32, [_P, ctypes.POINTER(_I32), ctypes.POINTER(_F32)]),
    "liquid_set_engine": (_I32, [_P, _I32]),
    "liquid_set_forced": (_I32, [_P, ctypes.POINTER(_U8), _I32, _I32]),
    "liquid_set_trace": (None, [_P, _I32]),
    "liquid_trace_n_tokens": (_I32, [_P]),
    "liquid_trace_pos": (ctypes.POINTER(_I32), [_P]),
    "liquid_trace_seq": (ctypes.POINTER(_I32), [_P]),
    "liquid_trace_w": (ctypes.POINTER(_F32), [_P]),
    "liquid_trace_run": (ctypes.POINTER(_U8), [_P]),
    "liquid_trace_experts": (ctypes.POINTER(_I32), [_P]),
    "liquid_get_stats": (None, [_P, ctypes.POINTER(Stats)]),
    "liquid_reset_stats": (None, [_P]),
    "liquid_kv_bytes": (_I64, [_P]),
}


@dataclass(frozen=True)
class Trace:
    """What the gates said during one llama_decode, rows in the order of evaluation."""

    pos: np.ndarray  # [n_tokens] int32
    seq: np.ndarray  # [n_tokens] int32
    w: np.ndarray  # [n_tokens, n_gate] float32, NaN where the gate was not evaluated
    run: np.ndarray  # [n_tokens, n_gate] bool
    experts: np.ndarray | None  # [n_tokens, n_moe_layer, n_expert_used] int32, -1 where the layer was skipped


@functools.cache
def functions() -> ctypes.CDLL:
    """The library with the prototypes of liquid.h on it."""
    lib = library.load()._lib
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def model_info(model: Any) -> ModelInfo | None:
    """None for an architecture that has no depth of its own."""
    info = ModelInfo()
    return info if functions().liquid_get_model_info(model, ctypes.byref(info)) == 0 else None


def gates(model: Any, n_gate: int) -> list[Gate]:
    found = [Gate() for _ in range(n_gate)]
    for i, gate in enumerate(found):
        functions().liquid_get_gate(model, i, ctypes.byref(gate))
    return found


def set_depth(ctx: Any, mode: Mode, threshold: float = 0.0) -> bool:
    return functions().liquid_set_depth(ctx, int(mode), threshold) == 0


def get_depth(ctx: Any) -> tuple[Mode, float] | None:
    mode, threshold = _I32(), _F32()
    if functions().liquid_get_depth(ctx, ctypes.byref(mode), ctypes.byref(threshold)) != 0:
        return None
    return Mode(mode.value), threshold.value


def set_engine(ctx: Any, engine: ExecutionEngine) -> bool:
    return functions().liquid_set_engine(ctx, int(engine)) == 0


def set_forced(ctx: Any, run: np.ndarray) -> bool:  # [n_seq, n_pos, n_gate] uint8, copied by the library
    run = np.ascontiguousarray(run, dtype=np.uint8)
    n_seq, n_pos, _ = run.shape
    return functions().liquid_set_forced(ctx, run.ctypes.data_as(ctypes.POINTER(_U8)), n_seq, n_pos) == 0


def set_trace(ctx: Any, on: bool) -> None:
    functions().liquid_set_trace(ctx, int(on))


def trace(ctx: Any, info: ModelInfo) -> Trace:
    """The trace of the last llama_decode, copied out of the library."""
    lib = functions()
    n = max(lib.liquid_trace_n_tokens(ctx), 0)
    experts = lib.liquid_trace_experts(ctx) if info.n_moe_layer else None
    return Trace(
        pos=_copied(lib.liquid_trace_pos(ctx), (n,), np.int32),
        seq=_copied(lib.liquid_trace_seq(ctx), (n,), np.int32),
        w=_copied(lib.liquid_trace_w(ctx), (n, info.n_gate), np.float32),
        run=_copied(lib.liquid_trace_run(ctx), (n, info.n_gate), np.uint8).astype(bool),
        experts=_copied(experts, (n, info.n_moe_layer, info.n_expert_used), np.int32) if experts else None,
    )


def stats(ctx: Any) -> Stats:
    sums = Stats()
    functions().liquid_get_stats(ctx, ctypes.byref(sums))
    return sums


def reset_stats(ctx: Any) -> None:
    functions().liquid_reset_stats(ctx)


def kv_bytes(ctx: Any) -> int | None:
    """Bytes of K and V that the tokens in memory have now; None for memories that are no cache of K and V."""
    n_bytes = functions().liquid_kv_bytes(ctx)
    return n_bytes if n_bytes >= 0 else None


def _copied(pointer: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if not pointer or 0 in shape:
        return np.zeros(shape, dtype)
    return np.ctypeslib.as_array(pointer, shape=shape).astype(dtype, copy=True)
