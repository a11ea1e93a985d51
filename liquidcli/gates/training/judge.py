"""Hard decisions on held-out rows: executed share, KL and perplexity beside full depth, and the calibration table.

Everything that training does not change (states below the first gate, full depth) is computed once. Knows nothing of
how gates are trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Row
from .losses import compare
from .network import Gates, Network


@dataclass(frozen=True)
class Score:
    """Of one threshold. The predictions that count: an answer's, else those of a row's second half, as
    llama-perplexity counts."""

    executed_fraction: float
    kl: float  # nats per prediction
    ppl: float
    ppl_full: float
    run_share: tuple[float, ...]  # per gate

    @property
    def ppl_ratio(self) -> float:
        return self.ppl / self.ppl_full

    def as_json(self) -> dict:
        return {
            "executed_fraction": round(self.executed_fraction, 5),
            "kl": round(self.kl, 5),
            "ppl": round(self.ppl, 4),
            "ppl_full": round(self.ppl_full, 4),
            "ppl_ratio": round(self.ppl_ratio, 5),
            "run_share": [round(share, 4) for share in self.run_share],
        }


@dataclass(frozen=True)
class SeenRow:
    """A row and what full depth makes of it."""

    state: Tensor  # [1, T, n_embd], below the first gate
    scored: Tensor  # [n], positions whose predictions count
    targets: Tensor  # [n]
    teacher: Tensor  # [n, n_embd], normed
    loss: Tensor  # [n]


class Judge:
    """Scores gates on fixed rows; `start` is at most the first gated layer."""

    def __init__(self, network: Network, rows: Sequence[Row], start: int) -> None:
        self.network, self.start = network, start
        with torch.no_grad():
            self.rows = [self._seen(row) for row in rows]

    @classmethod
    def joined(cls, judges: Iterable[Judge]) -> Judge:
        """One judge of all their rows."""
        judges = list(judges)
        whole = cls(judges[0].network, [], judges[0].start)
        whole.rows = [row for judge in judges for row in judge.rows]
        return whole

    def _seen(self, row: Row) -> SeenRow:
        counts, tokens = torch.tensor(row.counts), torch.tensor(row.tokens)
        counts[-1] = 0
        counts[: max(self.network.always_run_tokens, 0 if row.n_prompt else len(tokens) // 2)] = 0
        scored = counts.nonzero()[:, 0]
        state = self.network.lower(tokens[None], self.start)
        teacher = self.network.final(self.network.full(state, self.start))[0, scored]
        targets = tokens[scored + 1]
        return SeenRow(state, scored, targets, teacher, compare(teacher, teacher, self.network.base.head, targets)[1])

    def score(self, gates: Gates, z_threshold: float = 0.0) -> Score:
        """Shares are means over rows; KL and perplexity over predictions."""
        kls, losses, shares, worth = [], [], [], torch.tensor([self.network.worth(place) for place in gates.places])
        with torch.no_grad():
            for row in self.rows:
                h, trace = self.network.gated(row.state, self.start, gates, z_threshold)
                student = self.network.final(h)[0, row.scored]
                kl, loss = compare(student, row.teacher, self.network.base.head, row.targets)
                kls.append(kl)
                losses.append(loss)
                shares.append(torch.stack([run.mean() for run in trace.run]))
        share = torch.stack(shares).mean(0)
        return Score(
            1 - float(((1 - share) * worth).sum()) / self.network.shape.n_layer,
            float(torch.cat(kls).mean()),
            math.exp(float(torch.cat(losses).mean())),
            math.exp(float(torch.cat([row.loss for row in self.rows]).mean())),
            tuple(share.tolist()),
        )

    def executed(self, gates: Gates, z_threshold: float) -> float:
        """The executed share alone: no head."""
        total = 0.0
        with torch.no_grad():
            for row in self.rows:
                _, trace = self.network.gated(row.state, self.start, gates, z_threshold)
                total += trace.executed(torch.ones(1, row.state.shape[1]), self.network.shape.n_layer)
        return total / len(self.rows)


CALIBRATION_TAUS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)


WIDEST_GAP = 0.015  # between the shares of two neighbours, where more thresholds can narrow it
MOST_MORE = 10


def calibrate(
    judge: Judge,
    gates: Gates,
    taus: tuple[float, ...] = CALIBRATION_TAUS,
    tell: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[tuple[float, float]]:
    """(threshold, executed share) pairs, denser where the share falls fast; shares are made to fall, as a higher
    threshold never runs more in the mean."""
    points, most = [], len(taus) + MOST_MORE
    for z in (math.log(tau / (1 - tau)) for tau in taus):
        points.append((z, judge.executed(gates, z)))
        tell(len(points), most, "calibrating")
    while len(points) < most:
        gaps = [(a[1] - b[1], i) for i, (a, b) in enumerate(itertools.pairwise(points)) if b[0] - a[0] > 0.01]
        if not gaps or max(gaps)[0] < WIDEST_GAP:
            break
        at = max(gaps)[1]
        z = (points[at][0] + points[at + 1][0]) / 2
        points.insert(at + 1, (z, judge.executed(gates, z)))
        tell(len(points), most, "calibrating")
    falling = itertools.accumulate((share for _, share in points), min)
    return [(1 / (1 + math.exp(-z)), share) for (z, _), share in zip(points, falling, strict=True)]
