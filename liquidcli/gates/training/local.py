"""First stage: each place on its own. Adapters learn what a layer adds; gates learn the logarithm of what its absence
costs.

The cost of replacing a layer's output by the adapter's for one token is estimated to second order: d is the
difference of the two, g the gradient of log p(y) at that place for y sampled from the model, and 1/2 (g.d)^2 is in
the mean the KL it causes, in that token and all later ones. So one backward pass prices every layer for every token.
Knows the full-depth base only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...gate_layout import GatePlace
from .forward import attention, feed
from .losses import sampled_score
from .network import Gates, Network, places_of

RIDGE = 1.0  # in units of a standardized state's variance


@dataclass
class Harvest:
    """What one pass of the base gives away; rows = tokens past the exempt positions, all [n_place, N, n_embd],
    bfloat16. A place is a layer, a span of layers or half a layer."""

    state: Tensor  # what enters
    change: Tensor  # what comes out - what enters
    score: Tensor  # gradient of log p(y) at what comes out


def harvest(
    network: Network,
    tokens: Tensor,
    counts: Tensor,
    where: Sequence[int | GatePlace],
    generator: torch.Generator,
) -> Harvest:
    """One forward and one backward pass at full depth over `tokens` [B, T]; `counts` [B, T]: predictions that
    matter; `where` are the places that may get a gate."""
    places = places_of(where)
    states = _states(network, tokens, min(place.layer for place in places))
    final = network.final(states[network.shape.n_layer, 0])
    score = sampled_score(final.detach().flatten(0, 1), network.base.head, generator, counts.flatten())
    final.backward(score.view_as(final))
    keep = lambda x: x.detach()[:, network.always_run_tokens :].flatten(0, 1).bfloat16()  # noqa: E731
    ends = [(states[begin], states[end]) for begin, end in map(_ends, places)]
    return Harvest(
        torch.stack([keep(begin) for begin, _ in ends]),
        torch.stack([keep(end.detach() - begin.detach()) for begin, end in ends]),
        torch.stack([keep(end.grad) for _, end in ends]),
    )


def _states(network: Network, tokens: Tensor, start: int) -> dict[tuple[int, int], Tensor]:
    """By (layer, half): the state that enters a layer's attention (0) and its feed-forward part (1)."""
    with torch.no_grad():
        h = network.lower(tokens, start)
    h.requires_grad_(True)
    states = {(start, 0): h}
    for il in range(start, network.shape.n_layer):
        layer = network.base.layers[il]
        mask = network.mask(il, h.shape[1])
        h = h + attention(network.norm(h, layer, "attn_norm"), layer, network.shape, network.rope(il), mask)
        states[il, 1] = h
        h = h + feed(network.norm(h, layer, "ffn_norm"), layer, network.shape)
        states[il + 1, 0] = h
    for state in states.values():
        state.retain_grad()
    return states


def _ends(place: GatePlace) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where what a gate switches begins and ends."""
    begin = (place.layer, int(place.scope == "ffn"))
    return begin, (place.layer, 1) if place.scope == "attn" else (place.layer + place.span, 0)


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
        self.norms = norms  # attn_norm: the one that gates read, ffn_norm: adapters; [L, 1, n_embd]
        self.n_layer, self.n_rows = state.shape[:2]

    def metric(self, rows: slice, damping: float = 0.03) -> Tensor:
        """Per layer a factor R [n_embd, n_embd] with R R^T = E[g g^T], damped: |d R| is what a difference d costs."""
        fisher = torch.stack([one.T @ one / len(one) for one in (score[rows].float() for score in self.score)])
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
    generator, limits = torch.Generator("cpu").manual_seed(seed), rows.indices(data.n_rows)
    n_step = max(1, (limits[1] - limits[0]) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * n_step, pct_start=0.15)
    for epoch in range(epochs):
        order = torch.randperm(limits[1] - limits[0], generator=generator, device="cpu") + limits[0]
        order, seen = order.to(unit.device), torch.zeros(len(unit))
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
        scaled = torch.linalg.solve_triangular(factor, scaled, upper=False, left=False)
        gates.skip_down.copy_(scaled * gates.may_adapt[:, None, None])


def fit_gates(
    gates: Gates, data: Harvested, cost: Tensor, *, ridge: float = RIDGE, prior: Tensor | None = None
) -> None:
    """Set the gates' logits to log(expected cost | token); `cost` [L, N] is one noisy sample for each token.

    Costs are so heavy-tailed that a few hundred tokens make up their sum, and a regression of the cost itself learns
    those by heart: so its logarithm is regressed, with a ridge, and two numbers for each gate then make it the
    logarithm of the mean. The ridge draws towards `prior`, weights [L, n_embd] of gates fitted to other text.
    """
    cost = torch.stack([row.minimum(row.quantile(0.998)) for row in cost])
    with torch.no_grad():
        for i in range(len(gates.layers)):
            unit, norm = data.unit[i].float(), data.norms["attn_norm"][i, 0]
            mean, std = unit.mean(0), unit.std(0) + 1e-6
            read = norm != 0  # elsewhere a gate sees nothing
            unit = (unit - mean).div_(std).mul_(read)  # [N, n_embd]
            before = torch.zeros_like(gates.weight[i]) if prior is None else prior[i]
            said = unit @ (before * norm * std)
            log_cost = torch.log(cost[i] + 0.01 * cost[i].mean())
            level = log_cost.mean()
            trust = float(said @ (log_cost - level) / said.square().sum().clamp_min(1e-9))
            rest = log_cost - level - trust * said
            gram = unit.T @ unit / len(unit) + ridge * torch.eye(unit.shape[1])
            weight = torch.linalg.solve(gram, unit.T @ rest / len(unit))
            offset, slope = _log_mean(unit @ weight + trust * said, cost[i])
            folded = slope * (weight / std / norm.where(read, torch.ones(())) + trust * before)
            gates.weight[i] = folded
            gates.bias[i] = offset - (folded * norm * mean).sum()


def _log_mean(score: Tensor, cost: Tensor, steps: int = 40) -> tuple[Tensor, Tensor]:  # [N], [N]
    """(a, b) so that exp(a + b score) is the mean cost. ref: gamma regression, mean(cost * exp(-z) + z) is least where
    z = log E[cost | score]; damped Newton steps."""
    x = torch.stack((torch.ones_like(score), score))  # [2, N]
    found = torch.stack((cost.mean().log(), torch.ones(())))
    for _ in range(steps):
        ratio = cost * torch.exp(-(found @ x).clamp(-14, 6))
        slope, curve = (x * (1 - ratio)).mean(1), (x * ratio) @ x.T / x.shape[1] + 1e-4 * torch.eye(2)
        found = found - 0.7 * torch.linalg.solve(curve, slope).clamp(-1, 1)
    return found[0], found[1]
