"""A text cut into windows for perplexity, and the decode calls that evaluate them: llama-perplexity's rules.

The text is tokenized once; every window begins with BOS if the vocabulary wants one, and only its second half is
scored. Knows token positions. Knows nothing of models or probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError

CTX_PADDING = 256  # the library rounds contexts up to this
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ


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
    if n_chunks == 0:
        raise UsageError("there is nothing to measure in 0 chunks", hint="--chunks N, -1: all of the text")
    strided = ppl_stride > 0
    length = _padded(n_ctx + ppl_stride // 2) if strided else n_ctx
    if n_tokens < 2 * length:
        raise UsageError(
            f"the text has {n_tokens} tokens, perplexity with a context of {length} needs at least {2 * length}",
            hint="give a longer text with -f, or a smaller context with -c",
        )
    if ppl_stride >= length:
        found = f"a stride of {ppl_stride} tokens leaves some between windows of {length} that nothing scores"
        raise UsageError(found, hint="a smaller --ppl-stride, or a larger context with -c")
    step = ppl_stride if strided else n_ctx
    most = -(-(n_tokens - length) // step) if strided else n_tokens // n_ctx
    return Windows(
        n_chunks=most if n_chunks < 0 else min(n_chunks, most),
        length=length,
        step=step,
        first=length - ppl_stride - 1 if strided else n_ctx // 2,
        n_seq=1 if strided else sequences_at_once(n_batch, n_ctx),
        n_batch=min(n_batch, length),
        with_bos=not strided,  # llama-perplexity leaves BOS out of strided windows
    )


def sequences_at_once(n_batch: int, n_ctx: int) -> int:
    return max(1, min(n_batch // n_ctx, MOST_SEQUENCES))


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
