"""Perplexity of a text, and the divergence of two models on it: the numbers of llama-perplexity.

Knows windows, scores and their statistics. Knows nothing of terminals, nor of the library beyond `Engine`. The text is
tokenized once; every window begins with BOS if the vocabulary wants one, and only its second half is scored.
ref: https://huggingface.co/docs/transformers/perplexity
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .divergence import Comparison, compare_rows, comparison_json

if TYPE_CHECKING:
    from .depth import DepthPolicy
    from .engine import Engine

CTX_PADDING = 256  # the library rounds contexts up to this
_ROWS_AT_ONCE = 32  # bounds the temporaries of a softmax to a few times 32 x n_vocab floats


@dataclass(frozen=True)
class Windows:
    """Which tokens are evaluated together: chunk i is tokens[i*step : i*step + length], scored from `first` on."""

    n_chunks: int
    length: int
    step: int
    first: int
    n_seq: int  # chunks per batch, each a sequence of its own
    n_batch: int  # tokens per sequence and decode call
    with_bos: bool

    @property
    def n_scored(self) -> int:
        return self.length - 1 - self.first


def plan_windows(
    n_tokens: int, n_ctx: int = 512, n_chunks: int = -1, n_batch: int = 2048, ppl_stride: int = 0
) -> Windows:
    """The windows of a text of `n_tokens`; UsageError, with the number needed, when it is too short for one."""
    if n_ctx < 4:
        raise UsageError(f"perplexity needs a context of at least 4 tokens, not {n_ctx}")
    strided = ppl_stride > 0
    length = _padded(n_ctx + ppl_stride // 2) if strided else n_ctx
    if n_tokens < 2 * length:
        raise UsageError(
            f"the text has {n_tokens} tokens, perplexity with a context of {length} needs at least {2 * length}",
            hint="give a longer text with -f, or a smaller context with -c",
        )
    step = ppl_stride if strided else n_ctx
    most = -(-(n_tokens - length) // step) if strided else n_tokens // n_ctx
    return Windows(
        n_chunks=most if n_chunks < 0 else min(n_chunks, most),
        length=length,
        step=step,
        first=length - ppl_stride - 1 if strided else n_ctx // 2,
        n_seq=1 if strided else max(1, n_batch // n_ctx),
        n_batch=min(n_batch, length),
        with_bos=not strided,  # llama-perplexity leaves BOS out of strided windows
    )


def _padded(n_ctx: int) -> int:
    return -(-n_ctx // CTX_PADDING) * CTX_PADDING


@dataclass(frozen=True)
class Step:
    """One decode call: rows of `n_seq` sequences, and where the scored ones among their outputs belong."""

    tokens: np.ndarray  # [n_rows] int32
    pos: np.ndarray  # [n_rows] int32
    seq_ids: np.ndarray  # [n_rows] int32
    want: list[bool]  # [n_rows]
    scored: np.ndarray  # [n_outputs] bool: all outputs but a window's last
    targets: np.ndarray  # [n_scored_rows] int32, the token that follows
    chunk: np.ndarray  # [n_scored_rows]
    column: np.ndarray  # [n_scored_rows], 0 = the window's first scored token


def steps_of(tokens: Sequence[int], windows: Windows, bos: int | None) -> Iterator[list[Step]]:
    """Batches of chunks, each as the decode calls it takes; the caller clears the memory before each batch."""
    text = np.asarray(tokens, np.int32)
    for chunk in range(0, windows.n_chunks, windows.n_seq):
        chunks = np.arange(chunk, min(chunk + windows.n_seq, windows.n_chunks))
        yield [_step(text, windows, bos, chunks, at) for at in range(0, windows.length, windows.n_batch)]


def _step(text: np.ndarray, windows: Windows, bos: int | None, chunks: np.ndarray, at: int) -> Step:
    pos = np.arange(at, min(at + windows.n_batch, windows.length))
    rows = chunks[:, None] * windows.step + pos[None, :]  # [n_chunks_here, n_pos]
    tokens = text[rows]
    if bos is not None and windows.with_bos and at == 0:
        tokens[:, 0] = bos
    want = np.broadcast_to(pos >= windows.first, rows.shape)
    scored = want & (pos < windows.length - 1)
    chunk, column = np.broadcast_arrays(chunks[:, None], pos[None, :] - windows.first)
    return Step(
        tokens=tokens.reshape(-1),
        pos=np.tile(pos, len(chunks)).astype(np.int32),
        seq_ids=np.repeat(np.arange(len(chunks)), len(pos)).astype(np.int32),
        want=want.reshape(-1).tolist(),
        scored=scored[want],
        targets=text[rows[scored] + 1],
        chunk=chunk[scored],
        column=column[scored],
    )


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
    chunk_ppl: list[float] = field(default_factory=list)

    def advance(self, n_chunks: int) -> None:
        """`n_chunks` more are complete: running perplexity after each of them."""
        for done in range(self.n_done + 1, self.n_done + n_chunks + 1):
            self.chunk_ppl.append(_exp(self.nll[:done].mean()))
        self.n_done += n_chunks

    def ppl(self) -> tuple[float, float]:
        """The estimate and its standard error."""
        nll = self.nll[: self.n_done]
        mean = nll.mean()
        variance = (nll * nll).mean() - mean * mean
        ppl = _exp(mean)
        return ppl, ppl * float(np.sqrt(max(variance, 0.0) / (nll.size - 1)))

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
        if base is not None:
            run.comparison.put(here, compare_rows(logits[rows[part]], base[rows[part]], targets[part]))
