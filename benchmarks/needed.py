"""How many multiplications a batch of rows needs, at full depth and with decisions given, from a shape's sizes.

Knows matrices and attention: a skipped row still computes its gate, its adapter and, unless the model drops them, K and
V. Does not count norms, rotations and other work that grows with n_embd alone.
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
    ran = run != 0
    n_seq, n_pos, n_gate = ran.shape
    seen = 1 + np.arange(n_pos)  # positions that a row attends to
    kv, matrices = 2 * shape.n_embd * shape.n_embd_kv, _matrices(shape)
    gate = shape.n_embd if not gates.rank else (shape.n_embd + 1) * gates.rank
    adapter = 3 * shape.n_embd * gates.adapter
    head = outputs * shape.n_embd * shape.n_vocab

    layer = n_seq * float(np.sum(matrices + kv + 2 * shape.n_embd * seen))
    if gates.kv_policy == "drop":
        seen_there, stored = np.cumsum(ran, axis=1), ran
    else:
        seen_there, stored = np.broadcast_to(seen[None, :, None], ran.shape), np.ones_like(ran)
    running = float(np.sum(ran * (matrices + 2 * shape.n_embd * seen_there)))
    gated = running + kv * stored.sum() + adapter * (~ran).sum() + gate * ran.size
    return Work(shape.n_layer * layer + head, (shape.n_layer - n_gate) * layer + gated + head)


def _matrices(shape: Shape) -> int:
    """Q, output and feed-forward network of one row in one layer."""
    ffn = 3 * shape.n_embd * shape.n_ff * max(1, shape.n_expert_used) + shape.n_embd * shape.n_expert
    return 2 * shape.n_embd * shape.n_embd + ffn
