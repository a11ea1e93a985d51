"""First stage: each layer on its own. Adapters learn what a layer adds; gates learn the logarithm of what its absence
costs.

The cost of replacing a layer's output by the adapter's for one token is estimated to second order: d is the
difference of the two, g the gradient of log p(y) at that place for y sampled from the model, and 1/2 (g.d)^2 is in
the mean the KL it causes, in that token and all later ones. So one backward pass prices every layer for every token.
Knows the full-depth base only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import sampled_score
from .network import Gates, Network, run_layer


@dataclass
class Harvest:
    """What one pass of the base gives away; rows = tokens past the exempt positions, all [n_layer, N, n_embd],
    bfloat16."""

    state: Tensor  # layer input
    change: Tensor  # layer output - layer input
    score: Tensor  # gradient of log p(y) at the layer's output


def harvest(
    network: Network, tokens: Tensor, counts: Tensor, layers: list[int], generator: torch.Generator
) -> Harvest:
    """One forward and one backward pass at full depth over `tokens` [B, T]; `counts` [B, T]: predictions that
    matter."""
    base, start = network.base, min(layers)
    with torch.no_grad():
        h = network.lower(tokens, start)
    h.requires_grad_(True)
    states = {start: h}
    for il in range(start, network.shape.n_layer):
        h, _ = run_layer(h, base.layers[il], network.shape, network.rope)
        h.retain_grad()
        states[il + 1] = h
    final = network.final(h)
    score = sampled_score(final.detach().flatten(0, 1), base.head, generator, counts.flatten())
    final.backward(score.view_as(final))
    keep = lambda x: x.detach()[:, network.always_run_tokens :].flatten(0, 1).bfloat16()  # noqa: E731
    return Harvest(
        torch.stack([keep(states[il]) for il in layers]),
        torch.stack([keep(states[il + 1].detach() - states[il].detach()) for il in layers]),
        torch.stack([keep(states[il + 1].grad) for il in layers]),
    )


def adapters_out(gates: Gates, x: Tensor) -> Tensor:  # [L, N, n_embd] -> [L, N, n_embd]
    hidden = torch.nn.functional.silu(torch.bmm(x, gates.skip_gate)) * torch.bmm(x, gates.skip_up)
    return torch.bmm(hidden, gates.skip_down)


def skip_cost(difference: Tensor, score: Tensor) -> Tensor:  # [L, N]; ref: KL ~ 1/2 d^T F d, F = E[g g^T]
    return 0.5 * (difference * score).sum(-1).square()


class Harvested:
    """All that was harvested, in memory: unit-sized states, changes and scores of a list of layers, bfloat16."""

    def __init__(self, chunks: list[Harvest], norms: dict[str, Tensor], eps: float) -> None:
        state = torch.cat([chunk.state for chunk in chunks], 1)
        scale = [torch.rsqrt(chunk.state.float().square().mean(-1, keepdim=True) + eps) for chunk in chunks]
        self.unit = state * torch.cat(scale, 1).bfloat16()
        self.change = torch.cat([chunk.change for chunk in chunks], 1)
        self.score = torch.cat([chunk.score for chunk in chunks], 1)
        self.norms = norms  # attn_norm (gates read it), ffn_norm (adapters): [L, 1, n_embd]
        self.n_layer, self.n_rows = state.shape[:2]

    def metric(self, rows: slice, damping: float = 0.03) -> Tensor:
        """Per layer a factor R [n_embd, n_embd] with R R^T = E[g g^T], damped: |d R| is what a difference d costs."""
        score = self.score[:, rows].float()
        fisher = torch.bmm(score.transpose(1, 2), score) / score.shape[1]
        level = fisher.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        return torch.linalg.cholesky(fisher + damping * level * torch.eye(fisher.shape[1]))

    def input(self, norm: str, rows: Tensor | slice) -> Tensor:  # [L, n, n_embd]
        return self.unit[:, rows].float() * self.norms[norm]

    def cost(self, gates: Gates | None, rows: slice, step: int = 1024) -> Tensor:  # [L, n]; None: no adapter
        """What skipping costs each token, one noisy sample each."""
        parts = []
        with torch.no_grad():
            for start in range(*rows.indices(self.n_rows)[:2], step):
                part = slice(start, min(start + step, rows.indices(self.n_rows)[1]))
                difference = -self.change[:, part].float()
                if gates is not None:
                    difference += adapters_out(gates, self.input("ffn_norm", part))
                parts.append(skip_cost(difference, self.score[:, part].float()))
        return torch.cat(parts, 1)


def fit_adapters(
    gates: Gates,
    data: Harvested,
    rows: slice,
    *,
    epochs: int,
    lr: float,
    weight: Tensor | None = None,
    batch: int = 1024,
    seed: int = 0,
    report: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Regress what each layer adds, measured by the mean Fisher metric, all layers at once; `weight` [L, n_rows] per
    token.

    `report` is told the epoch and the unexplained share per layer.
    """
    factor = data.metric(rows)
    target = torch.stack(
        [(one.float() @ f).bfloat16() for one, f in zip(data.change, factor, strict=True)]
    )  # as change
    unit = target[:, rows].float().square().sum(-1).mean(1)  # [L]
    down = torch.bmm(gates.skip_down.detach(), factor).requires_grad_(True)
    parameters = [gates.skip_gate, gates.skip_up, down]
    with torch.no_grad():
        down.div_(unit.sqrt()[:, None, None])
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.98))
    generator, limits = torch.Generator().manual_seed(seed), rows.indices(data.n_rows)
    n_step = max(1, (limits[1] - limits[0]) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * n_step, pct_start=0.15)
    for epoch in range(epochs):
        order, seen = torch.randperm(limits[1] - limits[0], generator=generator) + limits[0], torch.zeros(len(unit))
        for i in range(n_step):
            part = order[i * batch : (i + 1) * batch]
            x = data.input("ffn_norm", part)
            hidden = torch.nn.functional.silu(torch.bmm(x, gates.skip_gate)) * torch.bmm(x, gates.skip_up)
            miss = torch.bmm(hidden, down) - target[:, part].float() / unit.sqrt()[:, None, None]
            error = miss.square().sum(-1)  # [L, n], relative to no adapter
            loss = (error * weight[:, part]).mean(1).sum() if weight is not None else error.mean(1).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            seen += error.detach().mean(1) / n_step
        if report:
            report(epoch, seen)
    with torch.no_grad():
        scaled = down * unit.sqrt()[:, None, None]
        gates.skip_down.copy_(torch.linalg.solve_triangular(factor, scaled, upper=False, left=False))


def fit_gates(
    gates: Gates, data: Harvested, cost: Tensor, *, steps: int = 300, ridge: float = 4e-3, seed: int = 5
) -> None:
    """Set the gates' logits to log(expected cost | token); `cost` [L, N] is one noisy sample for each token.

    ref: gamma regression, mean(cost * exp(-z) + z) is least where z = log E[cost | features].
    """
    sample = data.input("attn_norm", slice(0, data.n_rows, max(1, data.n_rows // 4000)))
    mean, std = sample.mean(1, keepdim=True), sample.std(1, keepdim=True) + 1e-6
    cost = cost.minimum(cost.quantile(0.998, dim=1, keepdim=True))
    level = cost.mean(1)  # [L]
    relative = cost / level[:, None]
    weight = torch.zeros_like(gates.weight, requires_grad=True)
    bias = torch.zeros_like(gates.bias, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(data.n_rows, (min(2048, data.n_rows),), generator=generator)
        scaled = weight / std[:, 0]  # acts on the normed state itself
        through = torch.bmm(data.unit[:, rows].float(), (scaled * data.norms["attn_norm"][:, 0])[:, :, None])[:, :, 0]
        z = (through + (bias - (scaled * mean[:, 0]).sum(1))[:, None]).clamp(-8, 8)
        loss = (relative[:, rows] * torch.exp(-z) + z).mean(1).sum() + ridge * weight.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        folded = weight / std[:, 0]
        gates.weight.copy_(folded)
        gates.bias.copy_(bias - (folded * mean[:, 0]).sum(1) + level.log())
