"""Hard decisions on held-out rows: executed share, perplexity beside full depth, and the calibration table.

Everything that training does not change (states below the first gate, full-depth losses) is computed once. Knows
nothing of how gates are trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import surprise
from .network import Gates, Network


@dataclass(frozen=True)
class Score:
    """Of one threshold. `ppl` counts the second half of each row, as llama-perplexity does."""

    executed_fraction: float
    ppl: float
    ppl_full: float
    run_share: tuple[float, ...]  # per gate

    @property
    def ppl_ratio(self) -> float:
        return self.ppl / self.ppl_full

    def as_json(self) -> dict:
        return {
            "executed_fraction": round(self.executed_fraction, 5),
            "ppl": round(self.ppl, 4),
            "ppl_full": round(self.ppl_full, 4),
            "ppl_ratio": round(self.ppl_ratio, 5),
            "run_share": [round(share, 4) for share in self.run_share],
        }


class Judge:
    """Scores gates on fixed rows, n x [T]; `start` is at most the first gated layer."""

    def __init__(self, network: Network, rows: Sequence[Tensor], start: int) -> None:
        self.network, self.rows, self.start = network, rows, start
        with torch.no_grad():
            self.states = [network.lower(row[None], start) for row in rows]  # n x [1, T, n_embd]
        self._full: Tensor | None = None

    def _losses(self, h: Tensor, row: Tensor) -> Tensor:  # [T - T/2 - 1]
        state, half = self.network.final(h)[0], len(row) // 2
        return surprise(state[half:-1], self.network.base.head, row[half + 1 :])

    def full_losses(self) -> Tensor:
        if self._full is None:
            with torch.no_grad():
                self._full = torch.cat(
                    [
                        self._losses(self.network.full(h, self.start), row)
                        for h, row in zip(self.states, self.rows, strict=True)
                    ]
                )
        return self._full

    def score(self, gates: Gates, z_threshold: float = 0.0) -> Score:
        losses, shares = [], []
        with torch.no_grad():
            for h, row in zip(self.states, self.rows, strict=True):
                h, trace = self.network.gated(h, self.start, gates, z_threshold)
                losses.append(self._losses(h, row))
                shares.append(torch.stack([run.mean() for run in trace.run]))
        share = torch.stack(shares).mean(0)
        executed = 1 - float((1 - share).sum()) / self.network.shape.n_layer
        return Score(
            executed,
            math.exp(float(torch.cat(losses).mean())),
            math.exp(float(self.full_losses().mean())),
            tuple(share.tolist()),
        )

    def executed(self, gates: Gates, z_threshold: float) -> float:
        """The executed share alone: no head."""
        total = 0.0
        with torch.no_grad():
            for h in self.states:
                _, trace = self.network.gated(h, self.start, gates, z_threshold)
                total += trace.executed(torch.ones(1, h.shape[1]), self.network.shape.n_layer)
        return total / len(self.states)


def threshold_for(judge: Judge, gates: Gates, target: float, *, guess: float = 0.0, tolerance: float = 0.003) -> float:
    """The logit threshold at which `target` of the layers run, by bisection from a bracket around `guess`."""
    low, high = guess - 1.0, guess + 1.0
    while judge.executed(gates, low) < target:
        low -= 2.0
    while judge.executed(gates, high) > target:
        high += 2.0
    for _ in range(12):
        middle = (low + high) / 2
        share = judge.executed(gates, middle)
        if abs(share - target) < tolerance:
            return middle
        low, high = (middle, high) if share > target else (low, middle)
    return (low + high) / 2


CALIBRATION_TAUS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)


def calibrate(judge: Judge, gates: Gates, taus: tuple[float, ...] = CALIBRATION_TAUS) -> list[tuple[float, float]]:
    """(threshold, executed share) pairs; shares are made to fall, as a higher threshold never runs more in the mean."""
    pairs = [(tau, judge.executed(gates, math.log(tau / (1 - tau)))) for tau in taus]
    for i in range(1, len(pairs)):
        pairs[i] = (pairs[i][0], min(pairs[i][1], pairs[i - 1][1]))
    return pairs
