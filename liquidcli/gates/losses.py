"""Output-side losses as gradients at the last hidden state: the vocabulary is visited in chunks and never kept for
autograd.

Knows the head and probabilities. Knows nothing of gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 256


def distil(student: Tensor, teacher: Tensor, head: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student) per row, gradient of its mean over `mask`) from normed states [N, n_embd]."""
    grad, kl = torch.zeros_like(student), torch.zeros(len(student))
    weight = mask / mask.sum()
    with torch.no_grad():
        for i in range(0, len(student), _CHUNK):
            part = slice(i, i + _CHUNK)
            log_t = (teacher[part] @ head.T).log_softmax(-1)  # [chunk, n_vocab]
            log_s = (student[part] @ head.T).log_softmax(-1)
            p_t = log_t.exp()
            kl[part] = (p_t * log_t.sub_(log_s)).sum(-1)
            grad[part] = (log_s.exp_().sub_(p_t) * weight[part, None]) @ head
    return kl, grad


def sampled_score(state: Tensor, head: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient of log p(y) at normed states [N, n_embd], one y per row drawn from the model itself.

    ref: its outer product has the Fisher information as its mean, so 1/2 (gradient . d)^2 estimates the KL that a
    small change d of the state costs.
    """
    score = torch.zeros_like(state)
    with torch.no_grad():
        for i in range(0, len(state), _CHUNK):
            part = slice(i, i + _CHUNK)
            p = (state[part] @ head.T).softmax(-1)
            y = torch.multinomial(p, 1, generator=generator)[:, 0]
            score[part] = head[y] - p @ head
    return score


def surprise(state: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) per row of normed states [N, n_embd]."""
    with torch.no_grad():
        parts = [
            torch.nn.functional.cross_entropy(s @ head.T, t, reduction="none")
            for s, t in zip(state.split(_CHUNK), targets.split(_CHUNK), strict=True)
        ]
    return torch.cat(parts)
