"""Perplexity of a text, and the divergence of two models on it: the numbers of llama-perplexity.

Knows scores and their statistics. Knows nothing of terminals, nor of the library beyond `Engine`; which tokens are
scored is settled in `windows`.
ref: https://huggingface.co/docs/transformers/perplexity
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .depth import DepthPolicy
from .divergence import Comparison, compare_rows, comparison_json, mean_and_error
from .windows import Step, Windows, plan_windows, steps_of

if TYPE_CHECKING:
    from .engine import Engine

_ANY_LENGTH = 1 << 40
_ROWS_AT_ONCE = 32  # bounds the temporaries of a softmax to a few times 32 x n_vocab floats


def token_nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each target: [n, n_vocab] float32, [n] -> [n] float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
    return log_sum - shifted[np.arange(len(targets)), targets]


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


@dataclass
class Evaluation:
    """What one depth setting has scored so far; arrays are [n_chunks, n_scored]."""

    policy: DepthPolicy
    windows: Windows
    nll: np.ndarray
    comparison: Comparison | None = None
    stats: Any = None
    seconds: float = 0.0
    n_done: int = 0  # chunks
    n_new: int = 0  # of them in the last batch
    chunk_ppl: list[float] = field(default_factory=list)

    def advance(self, n_chunks: int) -> None:
        """`n_chunks` more are complete: running perplexity after each of them."""
        for done in range(self.n_done + 1, self.n_done + n_chunks + 1):
            self.chunk_ppl.append(_exp(self.nll[:done].mean()))
        self.n_done += n_chunks
        self.n_new = n_chunks

    def ppl(self) -> tuple[float, float]:
        """The estimate and its standard error."""
        mean, error = mean_and_error(self.nll[: self.n_done])
        ppl = _exp(mean)
        return ppl, ppl * error

    def as_json(self) -> dict[str, Any]:
        ppl, ppl_error = self.ppl()
        n_tokens = self.n_done * self.windows.length
        result = {
            "ppl": ppl,
            "ppl_error": ppl_error,
            "n_chunks": self.n_done,
            "n_ctx": self.windows.length,
            "n_tokens": n_tokens,
            "n_scored": self.n_done * self.windows.n_scored,
            "seconds": self.seconds,
            "tokens_per_second": n_tokens / self.seconds if self.seconds else None,
            "chunk_ppl": self.chunk_ppl,
            "depth": self.stats.as_json(self.policy),
        }
        return result | (comparison_json(self.comparison, self.nll, self.n_done) if self.comparison else {})


def measure(
    path: Path,
    text: str,
    policies: Sequence[DepthPolicy],
    n_ctx: int = 512,
    n_chunks: int = -1,
    n_batch: int = 2048,
    ppl_stride: int = 0,
    *,
    base_path: Path | None = None,
    on_batch: Callable[[list[Evaluation]], None] | None = None,
    **settings: Any,
) -> list[Evaluation]:
    """Load, tokenize and `evaluate`; `settings` go to Engine.load. A base has to have the same vocabulary."""
    windows = plan_windows(_ANY_LENGTH, n_ctx, n_chunks, n_batch, ppl_stride)
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(_open(path, windows, settings))
        tokens = engine.tokenize(text)
        windows = plan_windows(len(tokens), n_ctx, n_chunks, n_batch, ppl_stride)
        for policy in policies:
            engine.set_depth(policy)
        base = stack.enter_context(_open(base_path, windows, settings)) if base_path else None
        if base:
            base.set_depth(DepthPolicy.parse("full"))
            _check_vocabulary(engine, base, tokens, text)
        return evaluate(engine, tokens, windows, policies, base=base, on_batch=on_batch)


def _open(path: Path, windows: Windows, settings: dict[str, Any]) -> Engine:
    """One memory per sequence and the batches of llama-perplexity: equal numbers need equal kernels."""
    from .engine import Engine

    n_seq, n_batch = windows.n_seq, windows.n_seq * windows.n_batch
    n_ctx = n_seq * windows.length
    return Engine.load(path, n_ctx=n_ctx, n_batch=n_batch, n_seq=n_seq, kv_unified=n_seq == 1, **settings)


def _check_vocabulary(engine: Engine, base: Engine, tokens: list[int], text: str) -> None:
    if engine.info.n_vocab != base.info.n_vocab or base.tokenize(text) != tokens:
        raise UsageError(
            f"{base.info.path.name} and {engine.info.path.name} do not share a vocabulary, "
            "so their predictions cannot be compared"
        )


def evaluate(
    engine: Engine,
    tokens: Sequence[int],
    windows: Windows,
    policies: Sequence[DepthPolicy],
    *,
    base: Engine | None = None,
    on_batch: Callable[[list[Evaluation]], None] | None = None,
) -> list[Evaluation]:
    """Score the windows at each depth setting, batch by batch; `base` is a model at full depth to compare with."""
    shape = (windows.n_chunks, windows.n_scored)
    runs = [
        Evaluation(policy, windows, np.zeros(shape), Comparison.empty(shape) if base else None) for policy in policies
    ]
    for batch in steps_of(tokens, windows, engine.model.bos if engine.model.add_bos else None):
        base_outputs = _base_outputs(base, batch) if base else None
        for run in runs:
            _run_batch(engine, run, batch, base_outputs)
        if on_batch:
            on_batch(runs)
    return runs


def _base_outputs(base: Engine, batch: list[Step]) -> list[np.ndarray]:
    base.clear()
    return [base.decode(step.tokens, step.pos, step.seq_ids, step.want) for step in batch]


def _run_batch(engine: Engine, run: Evaluation, batch: list[Step], base_outputs: list[np.ndarray] | None) -> None:
    engine.set_depth(run.policy)
    engine.clear()
    engine.reset_stats()
    for i, step in enumerate(batch):
        began = time.perf_counter()
        logits = engine.decode(step.tokens, step.pos, step.seq_ids, step.want)  # [n_outputs, n_vocab]
        run.seconds += time.perf_counter() - began
        rows = np.flatnonzero(step.scored)
        where = (step.chunk, step.column)
        _score(run, logits, rows, step.targets, where, base_outputs[i] if base_outputs else None)
    stats = engine.depth_stats()
    run.stats = stats if run.stats is None else run.stats + stats
    run.advance(int(batch[0].seq_ids[-1]) + 1)


def _score(
    run: Evaluation, logits: np.ndarray, rows: np.ndarray, targets: np.ndarray, where: tuple[np.ndarray, np.ndarray],
    base: np.ndarray | None,
) -> None:  # fmt: skip
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(at, at + _ROWS_AT_ONCE)
        here = (where[0][part], where[1][part])
        run.nll[here] = token_nll(logits[rows[part]], targets[part])
        if base is not None and run.comparison is not None:
            run.comparison.put(here, compare_rows(logits[rows[part]], base[rows[part]], targets[part]))
