"""What a generation tells its reader, piece by piece.

Knows shapes only; `liquidcli.runtime.engine` fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .depth import DepthPolicy, DepthStats


@dataclass(frozen=True)
class Timings:
    """Wall time by phase; `cache_n` prompt tokens were already in the memory."""

    prompt_n: int = 0
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_n": self.prompt_n,
            "cache_n": self.cache_n,
            "prompt_ms": round(self.prompt_ms, 3),
            "prompt_per_second": _rate(self.prompt_n, self.prompt_ms),
            "predicted_n": self.predicted_n,
            "predicted_ms": round(self.predicted_ms, 3),
            "predicted_per_second": _rate(self.predicted_n, self.predicted_ms),
        }


@dataclass(frozen=True)
class Summary:
    """The end of a generation: why it ended, how long it took, how deep it went."""

    finish_reason: str  # stop, length, context, interrupted
    prompt_tokens: int
    completion_tokens: int
    timings: Timings
    depth: DepthStats  # prompt tokens evaluated and generated tokens alike
    policy: DepthPolicy  # that they were evaluated with
    seed: int


@dataclass(frozen=True)
class Likelihood:
    """How likely the model found a token, before any sampler, and which ones it found likeliest."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), likeliest first


def likelihood(logits: np.ndarray, token: int, n_top: int) -> Likelihood:  # [n_vocab] float32
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-logprobs, kind="stable")[:n_top]
    return Likelihood(float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


@dataclass(frozen=True)
class Event:
    """One token, or the end. `layers` belong to the evaluation that produced the token."""

    text: str = ""
    token: int | None = None
    layers_run: int = 0
    layers_total: int = 0
    layers: np.ndarray | None = None  # [layers_total] bool
    summary: Summary | None = None  # only in the last event
    likelihood: Likelihood | None = None  # where it was asked for


def _rate(n: int, ms: float) -> float | None:
    return round(n / ms * 1000, 3) if n and ms > 0 else None
