"""Biases balanced on held-out text: what one more skipped layer costs, measured gate by gate under hard decisions, is
made the same for all gates.

A gate's logit is the logarithm of what a skip is expected to cost, so a gate whose skips cost r times as much as the
others' has its bias raised by log r. Knows biases only: weights and adapters stay as they are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .judge import Judge, SeenRow
from .losses import compare
from .network import Gates, Trace

STEP = 0.5  # logits by which a gate is opened to measure it
MOST = 1.0  # logits that one round may move a bias
TRUST = 0.7  # of the measured logarithm: it is noisy


@dataclass(frozen=True)
class Price:
    """What opening one gate by STEP does, per counted prediction."""

    layer: int
    skipped: float  # layers more per token, later gates' answers to it included
    kl: float  # nats more per prediction

    @property
    def price(self) -> float:
        """Nats for one layer; 0 where it costs nothing, NaN where it hardly skips more."""
        return max(0.0, self.kl) / self.skipped if self.skipped > 1e-4 else math.nan


def prices(
    judge: Judge, gates: Gates, *, step: float = STEP, tell: Callable[[int, int], None] | None = None
) -> list[Price]:
    """Of every gate, in order."""
    kl, skipped, n = torch.zeros(len(gates.places)), torch.zeros(len(gates.places)), 0
    with torch.no_grad():
        for done, row in enumerate(judge.rows):
            row_kl, row_skipped = _of_row(judge, gates, row, step)
            kl += row_kl * len(row.scored)
            skipped += row_skipped
            n += len(row.scored)
            if tell:
                tell(done + 1, len(judge.rows))
    return [Price(layer, float(skipped[i]) / len(judge.rows), float(kl[i]) / n) for i, layer in enumerate(gates.layers)]


def _of_row(judge: Judge, gates: Gates, row: SeenRow, step: float) -> tuple[Tensor, Tensor]:  # [n_gate] each
    network, layers = judge.network, sorted(set(gates.layers))
    h, _ = network.gated(row.state, judge.start, gates, until=layers[0])
    states, plain = {}, {}
    for layer, end in zip(layers, [*layers[1:], None], strict=True):
        states[layer] = h
        h, trace = network.gated(h, layer, gates, until=end)
        plain[layer] = _skipped(trace)
    plain_kl = _kl(judge, row, h)
    kl, skipped = torch.zeros(len(gates.places)), torch.zeros(len(gates.places))
    for i, place in enumerate(gates.places):
        gates.bias[i] -= step
        h, trace = network.gated(states[place.layer], place.layer, gates)
        gates.bias[i] += step
        kl[i] = _kl(judge, row, h) - plain_kl
        skipped[i] = _skipped(trace) - sum(n for layer, n in plain.items() if layer >= place.layer)
    return kl, skipped


def _skipped(trace: Trace) -> float:
    """Layers per token."""
    return sum(worth * float((1 - run).mean()) for worth, run in zip(trace.worth, trace.run, strict=True))


def _kl(judge: Judge, row: SeenRow, h: Tensor) -> float:
    student = judge.network.final(h)[0, row.scored]
    return float(compare(student, row.teacher, judge.network.base.head, row.targets)[0].mean())


def balance(gates: Gates, found: list[Price], *, trust: float = TRUST, most: float = MOST) -> list[float]:
    """Move the biases by what `found` says; the moves, in logits. The threshold is to be chosen anew afterwards."""
    known = [one.price for one in found if one.price > 0]
    if not known:
        return [0.0] * len(found)
    middle = statistics.median(known)
    moves = [_move(one.price / middle, trust, most) for one in found]
    with torch.no_grad():
        gates.bias.add_(torch.tensor(moves))
    return moves


def _move(ratio: float, trust: float, most: float) -> float:
    if math.isnan(ratio):
        return 0.0
    return max(-most, min(most, trust * math.log(ratio))) if ratio > 0 else -most
