"""Watching a graph while it is computed: for every matrix product the name of its matrix and the rows that go into it.

Knows struct ggml_tensor and the scheduler's evaluation callback. Does not know what the rows are good for.
ref: ggml/include/ggml.h, ggml/include/ggml-backend.h
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ggml

_MUL_MAT, _MUL_MAT_ID = b"MUL_MAT", b"MUL_MAT_ID"
_F32 = 0


class _Tensor(ctypes.Structure):
    pass


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


@dataclass(frozen=True)
class Product:
    """One matrix product of a graph."""

    name: str  # of the matrix
    n_matrices: int  # experts of a stack, else 1
    rows: np.ndarray  # [n_tokens, n_rows per token, n_per_row] float32; for a plain matrix [.., n_rows, n_per_row]
    experts: np.ndarray | None  # [n_tokens, n_experts_used] int32 for a stack of experts


class Watcher:
    """Hands every product of a matrix that `wants(name)` to `take`, while `is_on`. An error stops the computation."""

    def __init__(self, wants: Callable[[str], bool], take: Callable[[Product], None]) -> None:
        self.is_on = False
        self.error: BaseException | None = None
        self._wants, self._take = wants, take
        self._lib = _functions()
        self._names: dict[int, bytes] = {}
        self.callback = _CALLBACK(self._on_node)

    def _on_node(self, address: int, is_question: bool, _data: object) -> bool:
        if not self.is_on or self.error:
            return not is_question and not self.error
        try:
            node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
            op = self._op(node.op)
            if is_question:
                return op in (_MUL_MAT, _MUL_MAT_ID) and self._asks_for(node)
            self._take(self._product(node, op))
        except BaseException as error:  # ctypes would print it and go on
            self.error = error
            return False
        return True

    def _op(self, number: int) -> bytes:
        if number not in self._names:
            self._names[number] = self._lib.ggml_op_name(number)
        return self._names[number]

    def _asks_for(self, node: _Tensor) -> bool:
        return node.src[1].contents.type == _F32 and self._wants(_matrix_name(node))

    def _product(self, node: _Tensor, op: bytes) -> Product:
        matrix, rows = node.src[0].contents, self._array(node.src[1], np.float32)
        n_matrices = matrix.ne[2] * matrix.ne[3]
        if op == _MUL_MAT:
            return Product(_matrix_name(node), n_matrices, rows, None)
        experts = self._array(node.src[2], np.int32)
        return Product(_matrix_name(node), n_matrices, rows[0], experts[0, 0])

    def _array(self, pointer: Any, dtype: Any) -> np.ndarray:  # numpy order: [ne3, ne2, ne1, ne0]
        tensor = pointer.contents
        raw = np.empty(self._lib.ggml_nbytes(pointer), np.uint8)
        self._lib.ggml_backend_tensor_get(pointer, raw.ctypes.data, 0, raw.size)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.lib.stride_tricks.as_strided(raw.view(dtype), shape, strides)


def _matrix_name(node: _Tensor) -> str:
    """Without what a scheduler puts around it: CUDA0#blk.0.attn_k.weight#0."""
    name = node.src[0].contents.name.decode("utf-8", "replace")
    return name.split("#")[1] if "#" in name else name


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


def _functions() -> ctypes.CDLL:
    lib = ggml.library()
    lib.ggml_op_name.argtypes, lib.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    lib.ggml_nbytes.argtypes, lib.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    lib.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    lib.ggml_backend_tensor_get.restype = None
    return lib
