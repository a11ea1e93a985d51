"""A picture of depth: which layers ran for which token of an answer.

Knows characters and columns. Takes what ran as arrays; does not know why.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .stream import sanitize
from .wrap import columns

_HALVES = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}  # (upper, lower) layer ran
_PLAIN = {(True, True): "#", (True, False): "'", (False, True): ".", (False, False): " "}
_LABEL = 7  # columns of "  0- 1 "
_PERCENT = 5
_TOKEN_COLUMNS = 16


def depth_map(layers: Sequence[np.ndarray], width: int, *, unicode: bool = True) -> list[str]:
    """Lines: a column per token, a row per two layers, the deepest on top; at the right, the share each row ran."""
    ran = np.array(layers, bool)  # [n_tokens, n_layer]
    per_chunk = max(8, width - _LABEL - _PERCENT - 2)
    lines = []
    for start in range(0, len(ran), per_chunk):
        chunk = ran[start : start + per_chunk]
        end = start + len(chunk)
        lines += [f"tokens {start + 1} to {end} of {len(ran)}, {chunk.mean():.0%} of the layers ran"]
        lines += _picture(chunk, _HALVES if unicode else _PLAIN)
    return lines


def token_map(pieces: Sequence[str], layers: Sequence[np.ndarray], width: int, *, unicode: bool = True) -> list[str]:
    """Lines: a row per token with its text, its layers from left to right, and how many ran."""
    mark, gap = ("█", "·") if unicode else ("#", ".")
    room = max(8, width - _TOKEN_COLUMNS - 10)
    lines = []
    for piece, ran in zip(pieces, layers, strict=True):
        step = -(-len(ran) // room)  # layers per column, 1 where they fit
        cells = "".join(mark if ran[i : i + step].any() else gap for i in range(0, len(ran), step))
        lines.append(f"{_fitted(piece, _TOKEN_COLUMNS)} {cells} {int(ran.sum()):>3}/{len(ran)}")
    return lines


def _picture(ran: np.ndarray, marks: dict[tuple[bool, bool], str]) -> list[str]:
    n_layer = ran.shape[1]
    lines = []
    for low in range((n_layer - 1) // 2 * 2, -1, -2):
        high = min(low + 1, n_layer - 1)
        upper = ran[:, high] if high > low else np.zeros(len(ran), bool)
        label = f"{low:>3}-{high:<2} " if high > low else f"{low:>3}    "
        share = ran[:, low : high + 1].mean()
        lines.append(
            f"{label}{''.join(marks[bool(u), bool(v)] for u, v in zip(upper, ran[:, low], strict=True))} {share:>4.0%}"
        )
    return lines


def _fitted(piece: str, room: int) -> str:
    """The text of a token, made visible, in exactly so many columns."""
    text = "".join(
        "␣" if char == " " else "⏎" if char == "\n" else "⇥" if char == "\t" else char for char in sanitize(piece)
    )
    used, kept = 0, []
    for char in text:
        wide = columns(char)
        if used + wide > room:
            break
        used += wide
        kept.append(char)
    return "".join(kept) + " " * (room - used)
