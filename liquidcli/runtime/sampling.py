"""How the next token is chosen, and when to stop: parameters with llama.cpp's names and defaults, stop strings.

Knows numbers and text. The samplers themselves are llama.cpp's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UsageError

_BIAS = re.compile(r"(\d+)([+-](?:\d*\.?\d+|inf))")


@dataclass(frozen=True)
class SamplingParams:
    """llama.cpp's parameters; out of range is a UsageError."""

    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # -1: the whole context
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = -1  # -1: another one each time
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                shown = [f"{number:g}" if isinstance(number, float) else f"{number}" for number in (low, high, value)]
                raise UsageError(f"{name} lies between {shown[0]} and {shown[1]}, {shown[2]} does not")
        if self.repeat_penalty <= 0:
            raise UsageError("repeat_penalty is more than 0; 1 switches it off")

    def updated(self, **values: Any) -> SamplingParams:
        """A copy with those values that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def seeded(self) -> SamplingParams:
        """A copy whose seed is a number that can be given again."""
        return self if self.seed >= 0 else replace(self, seed=secrets.randbits(31))


_RANGES = (
    ("temp", 0, 100), ("top_k", -1, 1 << 30), ("top_p", 0, 1), ("min_p", 0, 1), ("repeat_penalty", 0, 100),
    ("repeat_last_n", -1, 1 << 30), ("frequency_penalty", -100, 100), ("presence_penalty", -100, 100),
    ("seed", -1, (1 << 32) - 2),  # the last one is llama.cpp's word for any
)  # fmt: skip


def parse_logit_bias(words: Sequence[str]) -> dict[int, float]:
    """`15043+1.5` or `15043-inf`, as llama.cpp writes them."""
    biases = {}
    for word in words:
        match = _BIAS.fullmatch(word.strip())
        if not match:
            raise UsageError(f"{word!r} is no logit bias", hint="write TOKEN_ID+BIAS or TOKEN_ID-BIAS, as in 15043-1.5")
        biases[int(match[1])] = float(match[2])
    return biases


class StopStrings:
    """Holds text back while it may be the beginning of a stop string; the stop string itself is never let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """What can be shown now; empty for good once `hit`."""
        if self.hit or not self._stops:
            return "" if self.hit else text
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return held[: min(found)]
        keep = max(self._beginning(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Length of the longest end of `text` that `stop` begins with."""
        return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
