"""HellaSwag: which of four endings a model finds likeliest, by mean log-probability per token (acc_norm).

Knows the task file of llama-perplexity (six lines a task: context, index of the right ending, four endings), the order
in which it draws tasks and its confidence interval. Knows nothing of terminals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from .depth import DepthPolicy
from .engine import Engine
from .perplexity import token_nll

_LINES = 6
_N_ENDINGS = 4
_Z95 = 1.95996398454


@dataclass(frozen=True)
class Task:
    """A context, its four endings, and which of them is right."""

    context: str
    gold: int
    endings: tuple[str, ...]


def read_tasks(text: str, n_tasks: int) -> list[Task]:
    """The tasks that llama-perplexity would score, in its order."""
    lines = text.split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines or len(lines) % _LINES:
        raise UsageError(
            f"a HellaSwag file has six lines per task, this one has {len(lines)} line{'s' * (len(lines) != 1)}",
            hint="of each task: the context, the number of the right ending (0 to 3), four endings",
        )
    groups = [lines[at : at + _LINES] for at in range(0, len(lines), _LINES)]
    return [_task(groups[i]) for i in draw_order(len(groups), min(n_tasks, len(groups)))]


def _task(lines: Sequence[str]) -> Task:
    if lines[1].strip() not in ("0", "1", "2", "3"):
        raise UsageError(f"the second line of a HellaSwag task is 0, 1, 2 or 3, not {lines[1][:40]!r}")
    return Task(lines[0], int(lines[1]), tuple(lines[2:]))


def draw_order(n: int, n_drawn: int) -> list[int]:
    """Draws without replacement by a Mersenne twister of seed 1, mapped to a range as libstdc++ does.

    ref: Lemire, Fast random integer generation in an interval, arXiv:1805.10941
    """
    words, left = _words(), list(range(n))
    return [left.pop(_below(words, len(left))) for _ in range(n_drawn)]


def _words() -> Iterator[int]:
    twister = np.random.RandomState(1)
    while True:
        yield from twister.randint(0, 1 << 32, 1024, np.uint32).tolist()


def _below(words: Iterator[int], n: int) -> int:
    product = next(words) * n
    while product & 0xFFFFFFFF < (1 << 32) % n:
        product = next(words) * n
    return product >> 32


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n trials. ref: Wilson 1927"""
    z = _Z95 * _Z95 / n
    middle = accuracy + z / 2
    half = z * math.sqrt(n * (4 * accuracy * (1 - accuracy) + z)) / (2 * _Z95)
    return (middle - half) / (1 + z), (middle + half) / (1 + z)


def measure(
    path: Path,
    tasks: Sequence[Task],
    policies: Sequence[DepthPolicy],
    n_ctx: int = 512,
    *,
    on_progress: Callable[[int, int, float], None] | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Score the tasks at each depth setting; `settings` go to Engine.load."""
    n_total = _N_ENDINGS * n_ctx
    with Engine.load(path, n_ctx=n_total, n_batch=n_total, n_seq=_N_ENDINGS, **settings) as engine:
        tokens = [_tokens(engine, task, n_total) for task in tasks]
        return [_measure(engine, tasks, tokens, policy, on_progress) for policy in policies]


def _measure(
    engine: Engine, tasks: Sequence[Task], tokens: list[list[list[int]]], policy: DepthPolicy,
    on_progress: Callable[[int, int, float], None] | None,
) -> dict[str, Any]:  # fmt: skip
    engine.set_depth(policy)
    engine.reset_stats()
    n_right = 0
    for done, (task, sequences) in enumerate(zip(tasks, tokens, strict=True), 1):
        n_right += int(np.argmax(ending_scores(engine, sequences))) == task.gold
        if on_progress:
            on_progress(done, len(tasks), n_right / done)
    accuracy = n_right / len(tasks)
    return {
        "acc_norm": accuracy,
        "acc_norm_95": list(wilson(accuracy, len(tasks))),
        "n_tasks": len(tasks),
        "depth": engine.depth_stats().as_json(policy),
    }


def _tokens(engine: Engine, task: Task, n_total: int) -> list[list[int]]:
    sequences = [engine.tokenize(f"{task.context} {ending}") for ending in task.endings]
    if not common_prefix(sequences):
        raise UsageError(f"a task's endings have nothing before them: {task.endings[0][:40]!r}")
    needed = max(map(len, sequences)) + sum(map(len, sequences))
    if needed > n_total:
        raise UsageError(f"a task needs {needed} tokens, the context holds {n_total}", hint=f"-c {needed // 4 + 1}")
    return sequences


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with; at least one is left to each."""
    shared = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return min(shared, min(map(len, sequences)) - 1)


def ending_scores(engine: Engine, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Mean log-probability of each sequence's tokens after what all of them share, which is computed once."""
    shared = common_prefix(sequences)
    engine.clear()
    first = engine.decode(sequences[0][:shared], range(shared), 0, "last")  # [1, n_vocab]
    for seq in range(1, len(sequences)):
        engine.seq_cp(0, seq)
    rest = [list(sequence[shared:]) for sequence in sequences]
    rows = [(token, shared + i, seq) for seq, ending in enumerate(rest) for i, token in enumerate(ending[:-1])]
    tokens, pos, seqs = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    logits = engine.decode(tokens, pos, seqs, "all") if rows else first[:0]
    scores, at = [], 0
    for ending in rest:
        n_rows = len(ending) - 1
        own = np.concatenate([first, logits[at : at + n_rows]])
        scores.append(-float(token_nll(own, np.asarray(ending)).mean()))
        at += n_rows
    return scores
