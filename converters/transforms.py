"""From a checkpoint's arrangement of numbers to GGUF's: small pure functions on arrays.

`Transform.by_row` promises that the function may be applied to any run of rows of the first axis and the results
joined, which is how big tensors stream; it holds for the way back too. Rearranging functions never look at the numbers,
so BF16 bits pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Transform:
    """What becomes of one row's sources. With several sources the function gets float32, else what the file holds."""

    name: str
    function: Callable[..., np.ndarray]
    by_row: bool = False
    # the way back: a target to what it holds of its source. One source's several targets are joined along `joined`;
    # several sources come as a list. None: there is no way back.
    inverse: Callable[[np.ndarray], Any] | None = None
    joined: int = -1
    computes: bool = False  # the function gets float32 whatever the file holds
    stacks: bool = False  # of several sources each is transformed alone, and the results lie one behind the other

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        return self.function(*arrays)


def interleave(w: np.ndarray, n_head: int) -> np.ndarray:  # (n_head*d, ...) -> (n_head*d, ...)
    """Rows of each head from halves (0, 1 ... d/2, d/2+1 ...) to pairs (0, d/2, 1, d/2+1 ...): RoPE type `norm`."""
    halves = w.reshape(n_head, 2, w.shape[0] // n_head // 2, *w.shape[1:])
    return halves.swapaxes(1, 2).reshape(w.shape)


def deinterleave(w: np.ndarray, n_head: int) -> np.ndarray:  # inverse of interleave
    pairs = w.reshape(n_head, w.shape[0] // n_head // 2, 2, *w.shape[1:])
    return pairs.swapaxes(1, 2).reshape(w.shape)


def swap_last(w: np.ndarray) -> np.ndarray:  # (E, a, b) -> (E, b, a)
    return w.swapaxes(-1, -2)


def first_half(w: np.ndarray) -> np.ndarray:  # (E, d, 2f) -> (E, f, d)
    return w[..., : w.shape[-1] // 2].swapaxes(-1, -2)


def second_half(w: np.ndarray) -> np.ndarray:  # (E, d, 2f) -> (E, f, d)
    return w[..., w.shape[-1] // 2 :].swapaxes(-1, -2)


def first_rows(w: np.ndarray) -> np.ndarray:  # (E, 2f, d) -> (E, f, d)
    return w[:, : w.shape[1] // 2]


def second_rows(w: np.ndarray) -> np.ndarray:  # (E, 2f, d) -> (E, f, d)
    return w[:, w.shape[1] // 2 :]


def flatten(w: np.ndarray) -> np.ndarray:  # (1, d) -> (d)
    return w.reshape(-1)


def unflatten(w: np.ndarray) -> np.ndarray:  # (d) -> (1, d)
    return w.reshape(1, -1)


def fold_head(dec: np.ndarray, head: np.ndarray) -> np.ndarray:  # (d, r), (1, d) -> (r)
    """head . dec as one vector: nothing non-linear stands between them. Summed in float64, rounded once."""
    return (head.astype(np.float64) @ dec.astype(np.float64)).reshape(-1).astype(np.float32)


def plus_one(w: np.ndarray) -> np.ndarray:
    return w + np.float32(1)


SAME = Transform("same", lambda w: w, by_row=True, inverse=lambda w: w)
SWAP = Transform("swap_last", swap_last, by_row=True, inverse=swap_last)
FIRST_HALF = Transform("first_half", first_half, by_row=True, inverse=swap_last)
SECOND_HALF = Transform("second_half", second_half, by_row=True, inverse=swap_last)
FIRST_ROWS = Transform("first_rows", first_rows, by_row=True, inverse=lambda w: w, joined=1)
SECOND_ROWS = Transform("second_rows", second_rows, by_row=True, inverse=lambda w: w, joined=1)
STACK = Transform("stack", lambda w: w, by_row=True, inverse=list, stacks=True)
FLATTEN = Transform("flatten", flatten, inverse=unflatten)
FOLD = Transform("fold_head", fold_head)
PLUS_ONE = Transform("plus_one", plus_one, computes=True, inverse=lambda w: w - np.float32(1))


def interleaved(n_head: int) -> Transform:
    return Transform(
        f"interleave({n_head})", lambda w: interleave(w, n_head), inverse=lambda w: deinterleave(w, n_head)
    )


def padded(count: int, axis: int) -> Transform:
    """`count` zeros more at the end of an axis of a matrix; the bits of 0 are 0 in every type."""
    widths = [(0, count if number == axis else 0) for number in range(2)]
    return Transform(f"pad({count}, axis {axis})", lambda w: np.pad(w, widths))


def plus_one_times(factor: float) -> Transform:
    return Transform(f"plus_one * {factor:g}", lambda w: plus_one(w) * np.float32(factor), computes=True)
