"""In which order the values of a matrix lie: what quantization keeps and a fine-tune does not.

Within a group of values that share their scale every scalar quantization is monotone, with an importance matrix or
without: of two weights it may make one, but it never puts the smaller above the larger. Of two files made from the
same weights, whatever their types, no pair in a group is ordered one way here and the other way there. An update does
swap pairs, the more of them the finer both types are. Groups of 16, the smallest any type has, are compared. Types
that round vectors to a codebook (IQ1, IQ2, IQ3) keep no order and are left out. Knows nothing of packs.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
from gguf import GGMLQuantizationType as T

from ..errors import IntegrityError
from ..gguf_file import GGUFFile, TensorInfo

GROUP = 16
_ROWS, _GROUPS_PER_ROW = 16, 4  # of each matrix, evenly spread
RANKS = _ROWS * _GROUPS_PER_ROW * GROUP  # per matrix
_CODEBOOK = (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S)
_NAME = re.compile(r"blk\.(\d{1,4})\.[a-z_]+\.weight")
_SWAPPED = 2e-6  # of the pairs that both files order, at most: none are, this is for arithmetic nobody foresaw


@dataclass(frozen=True)
class MatrixOrder:
    """Ranks in groups of matrices: for each name RANKS bytes, how many values of its group are smaller than a value."""

    names: tuple[str, ...] = ()
    ranks: bytes = b""

    @classmethod
    def of(cls, f: GGUFFile) -> MatrixOrder:
        """Of the matrices of all layers, mixtures' experts too, that have an order."""
        of_layers = [name for name in f.tensors if _NAME.fullmatch(name)]
        found = {name: _sampled(f, name) for name in of_layers if _is_ordered(f.tensors[name])}
        known = {name: _ranks(groups) for name, groups in found.items() if groups is not None}
        return cls(tuple(known), b"".join(known.values()))

    def fault(self, n_layer: int) -> str | None:
        """What is wrong with an order that was read, in words."""
        if len(set(self.names)) != len(self.names) or not all(_is_of_layer(name, n_layer) for name in self.names):
            return "names that are not those of matrices of its layers, each once"
        if len(self.ranks) != RANKS * len(self.names):
            return f"{len(self.ranks)} ranks for {len(self.names)} names, {RANKS} for each were expected"
        ranks = np.frombuffer(self.ranks, np.uint8).reshape(-1, GROUP)
        return "ranks that no values have" if _ranks(ranks) != self.ranks else None

    def difference(self, other: MatrixOrder) -> str | None:
        """What a matrix of `other` holds that this one was not taken of: the one with most pairs swapped where there
        are too many such pairs, or one where nothing is left of an order."""
        theirs = dict(other._groups())
        pairs = {name: _compare(mine, theirs[name]) for name, mine in self._groups() if name in theirs and mine.any()}
        swapped, ordered = (sum(counts) for counts in zip(*pairs.values(), strict=True)) if pairs else (0, 0)
        if swapped > _SWAPPED * ordered:
            return f"{max(pairs, key=lambda name: pairs[name][0])} holds other weights (a fine-tune)"
        flat = next((name for name, (_, n) in pairs.items() if not n), None)
        return f"{flat} holds nothing but one value, or none that is finite" if flat else None

    def _groups(self) -> list[tuple[str, np.ndarray]]:
        ranks = np.frombuffer(self.ranks, np.int8).reshape(len(self.names), RANKS // GROUP, GROUP)
        return list(zip(self.names, ranks, strict=True))


def _is_of_layer(name: str, n_layer: int) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and int(match[1]) < n_layer


def _is_ordered(info: TensorInfo) -> bool:
    n = info.shape[0]
    return len(info.shape) > 1 and n >= GROUP and not n % GROUP and info.type not in _CODEBOOK


def _sampled(f: GGUFFile, name: str) -> np.ndarray | None:
    """[groups, GROUP] float32; None for a type that nobody decodes."""
    info = f.tensors[name]
    n_rows, n_groups = info.n_elements // info.shape[0], info.shape[0] // GROUP
    rows = (2 * np.arange(_ROWS) + 1) * n_rows // (2 * _ROWS)
    columns = (np.arange(_GROUPS_PER_ROW) * _ROWS + np.arange(_ROWS)[:, None]) * n_groups // (_ROWS * _GROUPS_PER_ROW)
    try:
        values = f.rows(name, rows)
    except IntegrityError:
        return None
    grouped = values.reshape(_ROWS, n_groups, GROUP)
    return np.take_along_axis(grouped, columns[:, :, None], axis=1).reshape(-1, GROUP)


def _ranks(groups: np.ndarray) -> bytes:
    return (groups[:, None, :] < groups[:, :, None]).sum(-1, dtype=np.uint8).tobytes()


_PAIRS = tuple(np.array(list(itertools.combinations(range(GROUP), 2))).T)


def _compare(mine: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Pairs in opposite order, pairs that both order."""
    first, second = _PAIRS
    product = np.sign(mine[:, first] - mine[:, second]) * np.sign(theirs[:, first] - theirs[:, second])
    return int((product < 0).sum()), int((product != 0).sum())
