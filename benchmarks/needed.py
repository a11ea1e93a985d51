"""How many multiplications a batch of rows needs, at full depth and with decisions given, from a shape's sizes.

Knows matrices and attention (kv_policy = project: a skipped row still computes K, V, its gate and its adapter). Does
not count norms, rotations and other work that grows with n_embd alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from shapes import Gates, Shape


@dataclass(frozen=True)
class Work:
    """Multiplications of one workload."""

    full: float
    skipping: float

    @property
    def needed(self) -> float:
        return self.skipping / self.full


def work_of(shape: Shape, gates: Gates, run: np.ndarray, *, outputs: int) -> Work:
    """run: [n_seq, n_pos, n_gate], not 0 where the row runs; `outputs`: rows whose logits are computed."""
    n_seq, n_pos, _ = run.shape
    kv = 2 * shape.n_embd * shape.n_embd_kv
    gate = shape.n_embd if not gates.rank else (shape.n_embd + 1) * gates.rank
    adapter = 3 * shape.n_embd * gates.adapter
    row_work = _layer_rows(shape, n_pos)  # [n_pos]
    full = n_seq * shape.n_layer * float(np.sum(row_work + kv))
    spared = float(np.sum((run == 0) * (row_work - adapter)[None, :, None]))
    head = outputs * shape.n_embd * shape.n_vocab
    return Work(full + head, full - spared + run.size * gate + head)


def _layer_rows(shape: Shape, n_pos: int) -> np.ndarray:  # [n_pos]
    """What a row that runs computes in one layer beyond K and V: Q, output, causal attention, feed-forward network."""
    attention = 2 * shape.n_embd * shape.n_embd + 2 * shape.n_embd * (1 + np.arange(n_pos))
    ffn = 3 * shape.n_embd * shape.n_ff * max(1, shape.n_expert_used) + shape.n_embd * shape.n_expert
    return attention + ffn
