"""Does a model with gates work harder where it should? Depth by kind of text, and answers at a depth beside full depth.

Knows decisions, surprisal and agreement. Knows nothing of terminals, and brings no text of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .depth import DepthPolicy
from .perplexity import token_nll

if TYPE_CHECKING:
    from .engine import Engine

FULL = DepthPolicy.parse("full")
_UNSCORED = 16  # positions of a window whose predictions lack context
FEWEST_TOKENS = _UNSCORED + 2  # of a text: one prediction is scored
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Effort:
    """One kind of text. `rank_correlation`: of layers run by a token with full depth's surprisal at what follows."""

    kind: str
    n_tokens: int
    executed_fraction: float
    ppl: float
    ppl_full: float
    same_top_p: float
    surprisal_mean: float  # nats per token at full depth
    rank_correlation: float | None  # None where all tokens ran alike

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ppl_ratio_to_full": self.ppl / self.ppl_full}


def effort(engine: Engine, kind: str, tokens: Sequence[int], policy: DepthPolicy, n_ctx: int, n_chunks: int) -> Effort:
    """Windows from the beginning of `tokens`, each at full depth and at `policy`."""
    windows = [tokens[i : i + n_ctx] for i in range(0, len(tokens) - n_ctx + 1, n_ctx)][:n_chunks] or [tokens[:n_ctx]]
    nll, nll_full, same, layers, shares = [], [], [], [], []
    for window in windows:
        targets = np.asarray(window[1:], np.int64)[_UNSCORED:]
        full, _, _ = _decoded(engine, window, FULL)
        nll_full.append(token_nll(full, targets))
        top = full.argmax(1)
        logits, run, share = _decoded(engine, window, policy)
        nll.append(token_nll(logits, targets))
        same.append(logits.argmax(1) == top)
        layers.append(run)
        shares.append(share)
    surprisal = np.concatenate(nll_full)
    return Effort(
        kind, sum(map(len, windows)), float(np.mean(shares)), float(np.exp(np.concatenate(nll).mean())),
        float(np.exp(surprisal.mean())), float(np.concatenate(same).mean()), float(surprisal.mean()),
        rank_correlation(np.concatenate(layers), surprisal),
    )  # fmt: skip


def _decoded(engine: Engine, window: Sequence[int], policy: DepthPolicy) -> tuple[np.ndarray, np.ndarray, float]:
    """Logits and layers run of all scored positions, and the executed share of all."""
    engine.set_depth(policy)
    engine.clear()
    engine.reset_stats()
    engine.set_trace(True)
    wanted = [_UNSCORED <= i < len(window) - 1 for i in range(len(window))]
    logits = engine.decode(window, logits=wanted)
    run = _layers(engine, len(window))[_UNSCORED:-1]
    return logits, run, engine.depth_stats().executed_fraction


def _layers(engine: Engine, n_tokens: int) -> np.ndarray:
    """Layers under gates that each token ran; halves count alike."""
    trace = engine.trace()
    if trace is None or not trace.run.size:
        return np.zeros(n_tokens)
    return trace.run @ np.array([gate.span for gate in engine.info.gates], float)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, ties ranked alike; None where one side does not vary."""
    x, y = (_ranks(values) for values in (a, b))
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def greedy(
    engine: Engine, prompts: Sequence[Sequence[int]], n_predict: int, policy: DepthPolicy, n_seq: int, tell: Tell
) -> list[list[int]]:
    """The likeliest tokens after each prompt, at most `n_predict`, its end left out; `n_seq` side by side."""
    engine.set_depth(policy)
    answers: list[list[int]] = []
    for at in range(0, len(prompts), n_seq):
        answers += _side_by_side(engine, prompts[at : at + n_seq], n_predict)
        tell(len(answers), len(prompts), f"answers, {policy}")
    return answers


def _side_by_side(engine: Engine, prompts: Sequence[Sequence[int]], n_predict: int) -> list[list[int]]:
    engine.clear()
    answers: list[list[int]] = [[] for _ in prompts]
    following = {i: _first(engine, i, prompt) for i, prompt in enumerate(prompts)}
    while True:
        for i, token in list(following.items()):
            if engine.model.is_eog(token) or len(answers[i]) >= n_predict:
                del following[i]
            else:
                answers[i].append(token)
        if not following:
            return answers
        seqs = list(following)
        pos = [len(prompts[i]) + len(answers[i]) - 1 for i in seqs]
        logits = engine.decode([following[i] for i in seqs], pos, seqs, "all")
        following = dict(zip(seqs, logits.argmax(1).tolist(), strict=True))


def _first(engine: Engine, seq: int, prompt: Sequence[int]) -> int:
    logits = engine.decode(prompt, np.arange(len(prompt)), np.full(len(prompt), seq), "last")
    return int(logits[0].argmax())


def agreement(
    engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], policy: DepthPolicy, tell: Tell
) -> dict[str, Any]:
    """Teacher-forced along `answers`: how often the likeliest token is full depth's, and the share executed."""
    same, n, shares = 0, 0, []
    for done, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = [*prompt, *answer]
        wanted = [len(prompt) - 1 <= i < len(tokens) - 1 for i in range(len(tokens))]
        tops = []
        for depth in (FULL, policy):
            engine.set_depth(depth)
            engine.clear()
            engine.reset_stats()
            tops.append(engine.decode(tokens, np.arange(len(tokens)), np.zeros(len(tokens)), wanted).argmax(1))
        shares.append(engine.depth_stats().executed_fraction)
        same, n = same + int((tops[0] == tops[1]).sum()), n + len(answer)
        tell(done + 1, len(prompts), "along full's answers")
    return {
        "n_prompts": len(prompts), "n_tokens": n, "same_top_p": same / max(1, n),
        "executed_fraction": float(np.mean(shares)), "executed_min": min(shares), "executed_max": max(shares),
    }  # fmt: skip


def last_number(text: str) -> str | None:
    """The last number of an answer, as it would be compared: without separators and a trailing `.0`."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "").removesuffix(".").removesuffix(".0") if found else None


def solved(answers: Iterable[str], full: Iterable[str], gold: Sequence[str]) -> dict[str, Any]:
    """Questions with one number as their answer: right at a depth, right at full depth, the same number at both."""
    pairs = [(last_number(a), last_number(b)) for a, b in zip(answers, full, strict=True)]
    return {
        "n_questions": len(gold),
        "right": sum(a == g for (a, _), g in zip(pairs, gold, strict=True)),
        "right_full": sum(b == g for (_, b), g in zip(pairs, gold, strict=True)),
        "same_number": sum(a is not None and a == b for a, b in pairs),
    }
