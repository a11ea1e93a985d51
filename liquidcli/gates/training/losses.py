"""Output-side losses as gradients at the last hidden state: the vocabulary is visited in chunks and never kept for
autograd.

Knows the head and probabilities. Knows nothing of gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CHUNK, _MOST_LOGITS = 256, 2**24


def _chunk(head: Tensor) -> int:
    """Rows whose logits are held at once."""
    return max(1, min(_CHUNK, _MOST_LOGITS // len(head)))


def _parts(n_rows: int, head: Tensor) -> Iterator[slice]:
    step = _chunk(head)
    return (slice(i, i + step) for i in range(0, n_rows, step))


class SampledHead:
    """A large head, a part of it at a time: the words that the texts hold, and some of the others, drawn anew.

    ref: sampled softmax (Jean et al. 2015, arXiv 1412.2007): each of n words drawn out of N stands for N/n of them, so
    log(N/n) is added to its logit; the sum over the vocabulary is right in the mean.
    """

    def __init__(self, head: Tensor, known: Sequence[int], n_drawn: int) -> None:
        others = torch.ones(len(head), dtype=torch.bool)
        others[torch.tensor(known, dtype=torch.long)] = False
        self.head, self.known, self.others = head, (~others).nonzero()[:, 0], others.nonzero()[:, 0]
        self.n_drawn = min(n_drawn, len(self.others))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(rows of the head [n, n_embd], what is added to their logits [n]); `generator` is the processor's."""
        order = torch.randperm(len(self.others), generator=generator, device="cpu")[: self.n_drawn]
        drawn = self.others[order.to(self.others.device)]
        added = torch.zeros(len(self.known) + self.n_drawn)
        if self.n_drawn:
            added[len(self.known) :] = math.log(len(self.others) / self.n_drawn)
        return self.head[torch.cat((self.known, drawn))], added


def distil(
    student: Tensor, teacher: Tensor, head: Tensor, mask: Tensor, added: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student) per row, gradient of its mean over `mask`) from normed states [N, n_embd]; `added`
    [n_vocab]: to the logits of both."""
    grad, kl = torch.zeros_like(student), torch.zeros(len(student))
    weight = mask / mask.sum()
    with torch.no_grad():
        for part in _parts(len(student), head):
            log_t = (teacher[part] @ head.T + added).log_softmax(-1)  # [chunk, n_vocab]
            log_s = (student[part] @ head.T + added).log_softmax(-1)
            p_t = log_t.exp()
            kl[part] = (p_t * log_t.sub_(log_s)).sum(-1)
            grad[part] = (log_s.exp_().sub_(p_t) * weight[part, None]) @ head
    return kl, grad


def sampled_score(state: Tensor, head: Tensor, generator: torch.Generator, counts: Tensor | None = None) -> Tensor:
    """Gradient of log p(y) at normed states [N, n_embd], one y per row drawn from the model itself; 0
    where `counts` [N] is 0.

    ref: its outer product has the Fisher information as its mean, so 1/2 (gradient . d)^2 estimates the KL that a
    small change d of the state costs.
    """
    score = torch.zeros_like(state)
    rows = torch.arange(len(state)) if counts is None else counts.nonzero()[:, 0]
    with torch.no_grad():
        for part in rows.split(_chunk(head)):
            p = (state[part] @ head.T).softmax(-1)
            y = torch.multinomial(p, 1, generator=generator)[:, 0]
            score[part] = head[y] - p @ head
    return score


def compare(student: Tensor, teacher: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(teacher || student), -log p(target) of the student) per row of normed states [N, n_embd]."""
    kl, loss = torch.zeros(len(student)), torch.zeros(len(student))
    with torch.no_grad():
        for part in _parts(len(student), head):
            log_t = (teacher[part] @ head.T).log_softmax(-1)  # [chunk, n_vocab]
            log_s = (student[part] @ head.T).log_softmax(-1)
            loss[part] = -log_s.gather(1, targets[part, None])[:, 0]
            kl[part] = (log_t.exp() * log_t.sub_(log_s)).sum(-1)
    return kl, loss
