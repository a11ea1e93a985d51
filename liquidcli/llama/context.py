"""One context: tokens in, logits out, and the memory behind it.

Knows llama_context, batches and the memory calls. Does not know what was said in it, or why.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import IntegrityError, Interrupted, LiquidError, MemoryFitError, UsageError
from . import depth, library
from .interrupt import ctrl_c
from .model import Model

CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2, "iq4_nl": 20}
FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}
_ABORTED = 2
_NO_SLOT = 1
_MOST_THREADS = 512  # GGML_MAX_N_THREADS


@dataclass(frozen=True)
class ContextParams:
    """What a context is made with; 0 threads: the library's choice."""

    n_ctx: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq: int = 1
    n_threads: int = 0
    n_threads_batch: int = 0
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: str = "auto"
    kv_unified: bool = True
    on_node: Any = None  # a callback of `evaluation`


class Context:
    """llama_context with its memory; `close` gives it back."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        self._lib = library.load()
        self.model, self.params = model, params
        self.pointer = self._make(params)
        self.n_ctx: int = self._lib.llama_n_ctx(self.pointer)
        self.n_batch: int = self._lib.llama_n_batch(self.pointer)
        self._tracing = False
        self._memory = self._lib.llama_get_memory(self.pointer)
        if not self._memory or self._lib.llama_model_has_encoder(model.pointer):
            self._lib.llama_free(self.pointer)
            raise LiquidError(f"{model.path} is no model that goes on with a text: it encodes all of one at once")
        self._batch = _Batch(self._lib, self.n_batch)
        self._abort = self._lib.ggml_abort_callback(lambda _data: ctrl_c.pressed)
        self._never = self._lib.ggml_abort_callback(0)

    def _make(self, wanted: ContextParams) -> int:
        _check(wanted)
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = wanted.n_ctx, wanted.n_batch, wanted.n_ubatch
        params.n_seq_max, params.kv_unified = wanted.n_seq, wanted.kv_unified
        params.n_threads = wanted.n_threads or params.n_threads
        params.n_threads_batch = wanted.n_threads_batch or params.n_threads
        params.type_k = _named(CACHE_TYPES, wanted.type_k, "cache type")
        params.type_v = _named(CACHE_TYPES, wanted.type_v, "cache type")
        params.flash_attn_type = _named(FLASH_ATTN, wanted.flash_attn, "flash attention setting")
        if wanted.on_node is not None:
            params.cb_eval = ctypes.cast(wanted.on_node, type(params.cb_eval))
        library.log.reset()
        with ctrl_c.held():
            pointer = self._lib.llama_init_from_model(self.model.pointer, params)
        if pointer and not ctrl_c.pressed:
            return pointer
        if pointer:
            self._lib.llama_free(pointer)
        if ctrl_c.pressed:
            raise Interrupted("stopped while setting up the context")
        raise _context_failure(library.log.complaint(), wanted)

    def close(self) -> None:
        if self.pointer:
            self._lib.llama_free(self.pointer)
            self.pointer = 0

    # computing

    def decode(self, tokens: np.ndarray, pos: np.ndarray, seq: np.ndarray, wanted: np.ndarray) -> bool:
        """One llama_decode, at most n_batch tokens; `wanted` marks the tokens whose logits are kept. False: Ctrl-C.

        All arrays are [n_tokens]. After False the memory may hold some of the tokens.
        """
        self._batch.fill(tokens, pos, seq, wanted)
        many = len(tokens) > 1
        library.log.reset()
        with ctrl_c.held():
            if many:
                self._lib.llama_set_abort_callback(self.pointer, self._abort, None)
            code = self._lib.llama_decode(self.pointer, self._batch.struct)
            if many:
                self._lib.llama_set_abort_callback(self.pointer, self._never, None)
        if code == _NO_SLOT:
            raise MemoryFitError(f"the context of {self.n_ctx} tokens is full", hint="a larger one: -c N")
        if code not in (0, _ABORTED):
            raise _decode_failure(library.log.complaint() or f"code {code}")
        return code == 0

    def logits(self, n_out: int) -> np.ndarray:  # [n_out, n_vocab] float32, of the last decode, a copy
        if n_out == 0:
            return np.zeros((0, self.model.n_vocab), np.float32)
        pointer = self._lib.llama_get_logits(self.pointer)
        if not pointer:
            raise LiquidError("the last decode kept no logits")
        return np.ctypeslib.as_array(pointer, shape=(n_out, self.model.n_vocab)).copy()

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self._lib.llama_set_n_threads(self.pointer, n_threads, n_threads_batch)

    # memory; positions are [start, end), -1 for "to the end", as in llama.h

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)

    def seq_rm(self, seq: int, start: int = -1, end: int = -1) -> bool:
        return bool(self._lib.llama_memory_seq_rm(self._memory, seq, start, end))

    def seq_cp(self, source: int, target: int, start: int = -1, end: int = -1) -> None:
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def seq_keep(self, seq: int) -> None:
        self._lib.llama_memory_seq_keep(self._memory, seq)

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        if not self._lib.llama_memory_can_shift(self._memory):
            raise LiquidError("the memory of this model cannot be shifted")
        self._lib.llama_memory_seq_add(self._memory, seq, start, end, delta)

    def seq_range(self, seq: int) -> tuple[int, int]:
        """Smallest and largest position held; (-1, -1) when empty."""
        low = self._lib.llama_memory_seq_pos_min(self._memory, seq)
        return low, self._lib.llama_memory_seq_pos_max(self._memory, seq)

    # state, opaque bytes

    def state(self) -> bytes:
        room = self._lib.llama_state_get_size(self.pointer)
        buffer = (ctypes.c_uint8 * room)()
        n = self._lib.llama_state_get_data(self.pointer, buffer, room)
        if n == 0:
            raise LiquidError("llama.cpp could not save its state")
        return bytes(memoryview(buffer)[:n])

    def restore(self, state: bytes) -> None:
        """Checked by the caller; a refusal by the library leaves the memory empty."""
        buffer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        library.log.reset()
        if self._lib.llama_state_set_data(self.pointer, buffer, len(state)) != len(state):
            self.clear()
            raise IntegrityError(f"llama.cpp refused the state: {library.log.complaint() or 'no reason given'}")

    # depth

    def set_depth(self, mode: depth.Mode, threshold: float) -> bool:
        return depth.set_depth(self.pointer, mode, threshold)

    def set_dense(self) -> None:
        """Compute skipped rows too and mask them out: every matrix is seen with all tokens."""
        depth.set_engine(self.pointer, depth.ExecutionEngine.DENSE)

    def set_trace(self, on: bool) -> None:
        self._tracing = on and self.model.depth is not None
        depth.set_trace(self.pointer, on)

    def trace(self) -> depth.Trace | None:
        """Of the last decode; None where nothing is traced."""
        info = self.model.depth
        return depth.trace(self.pointer, info) if self._tracing and info else None

    def kv_bytes(self) -> int | None:
        """Of the tokens in memory now; None where the memory is no cache of K and V."""
        return depth.kv_bytes(self.pointer)

    def stats(self) -> depth.Stats:
        return depth.stats(self.pointer)

    def reset_stats(self) -> None:
        depth.reset_stats(self.pointer)


class _Batch:
    """A llama_batch over numpy arrays, one sequence per token."""

    def __init__(self, lib: Any, room: int) -> None:
        self._token = np.zeros(room, np.int32)
        self._pos = np.zeros(room, np.int32)
        self._seq = np.zeros(room, np.int32)
        self._wanted = np.zeros(room, np.int8)
        self._n_seq = np.ones(room, np.int32)
        self._seq_at = self._seq.ctypes.data + 4 * np.arange(room, dtype=np.uint64)  # address of each token's sequence
        self._room = room
        types = dict(lib.llama_batch._fields_)
        arrays: dict[str, np.ndarray] = {
            "token": self._token, "pos": self._pos, "n_seq_id": self._n_seq, "seq_id": self._seq_at,
            "logits": self._wanted,
        }  # fmt: skip
        self.struct = lib.llama_batch()
        for field, array in arrays.items():
            setattr(self.struct, field, ctypes.cast(array.ctypes.data, types[field]))

    def fill(self, tokens: np.ndarray, pos: np.ndarray, seq: np.ndarray, wanted: np.ndarray) -> None:
        n = len(tokens)
        if not 0 < n <= self._room:
            raise UsageError(f"a batch takes 1 to {self._room} tokens, not {n}")
        self._token[:n], self._pos[:n], self._seq[:n], self._wanted[:n] = tokens, pos, seq, wanted
        self.struct.n_tokens = n


def _named(table: dict[str, int], name: str, what: str) -> int:
    try:
        return table[name.lower()]
    except KeyError:
        raise UsageError(f"{name!r} is no {what}; there are {', '.join(table)}") from None


def _check(wanted: ContextParams) -> None:
    """What llama.cpp would not refuse but die of."""
    if min(wanted.n_batch, wanted.n_ctx or wanted.n_batch) < max(1, wanted.n_seq):
        what = f"{wanted.n_seq} sequences need" if wanted.n_seq > 1 else "a context needs"
        raise UsageError(f"{what} a batch and a context of at least {max(1, wanted.n_seq)}", hint="-b N, -c N")
    if max(wanted.n_threads, wanted.n_threads_batch) > _MOST_THREADS:
        raise UsageError(f"llama.cpp computes with {_MOST_THREADS} threads at most", hint="-t N")


def _decode_failure(said: str) -> LiquidError:
    if "no memory" in said:
        return MemoryFitError(f"this does not fit in memory: {said}", hint="a smaller context: -c N")
    return LiquidError(f"llama.cpp could not compute this: {said}")


def _context_failure(complaint: str, wanted: ContextParams) -> LiquidError:
    said = complaint or "no reason given"
    if "alloc" in said or "memory" in said:
        reason = "" if "bad_alloc" in said else f": {said}"
        return MemoryFitError(
            f"a context of {wanted.n_ctx} tokens does not fit in memory{reason}", hint="a smaller one: -c N"
        )
    if "requires flash_attn" in said:
        return UsageError(f"these settings exclude each other: {said}", hint="-fa on, or -ctv f16")
    return LiquidError(f"llama.cpp could not make a context: {said}", hint="LIQUID_DEBUG=1 shows llama.cpp's log")
