"""Second stage: adapters (and, if asked, gates) trained end to end towards the full-depth model, under hard decisions.

Knows one optimization step and its state. Gates decide as they will at run time; their threshold is shifted at random
from row to row so that every part of the dial is trained. Knows nothing of where rows come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .losses import distil
from .network import Gates, Network

PRICE_STEP = 0.2  # nats by which a row that ran everything at a target of nothing would raise the price
UPDATE_LR = 0.3  # the base's low-rank updates learn slower than adapters


@dataclass
class Step:
    """What one step saw."""

    kl: float  # nats per token, at this row's threshold
    executed_fraction: float
    z_threshold: float


@dataclass
class Tuner:
    """Adam over the gates of `gates`; `gate_lr` 0 leaves the decisions as they are."""

    network: Network
    gates: Gates
    lr: float
    gate_lr: float = 0.0
    target: float = 0.93
    price: float = 1.0  # nats per unit of executed share; rises while more than the target runs, falls below it
    jitter: float = 0.7  # spread of the threshold, in logits
    seed: int = 3
    done: int = 0
    optimizer: torch.optim.Adam = field(init=False)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        g = self.gates
        groups = [{"params": [g.skip_gate, g.skip_up, g.skip_down], "scale": self.lr}]
        if g.updates:
            groups.append({"params": list(g.updates.values()), "scale": UPDATE_LR * self.lr})
        if self.gate_lr:
            groups.append({"params": [g.weight, g.bias], "scale": self.gate_lr})
        else:
            g.weight.requires_grad_(False)
            g.bias.requires_grad_(False)
        self.optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(0.9, 0.98))
        self.generator = torch.Generator("cpu").manual_seed(self.seed)

    def step(self, tokens: Tensor, counts: Tensor, n_steps: int) -> Step:
        """One update from rows [B, T] and the predictions that count [B, T]; `n_steps` is the whole run's length, for
        the learning rate."""
        network, start = self.network, min(self.gates.layers)
        shift = self.jitter * float(torch.randn((), generator=self.generator, device="cpu"))
        with torch.no_grad():
            h = network.lower(tokens, start)
            teacher = network.final(network.full(h, start)).flatten(0, 1)
        out, trace = network.gated(h, start, self.gates, shift)
        student = network.final(out)
        counted, body = counts.clone(), torch.ones(tokens.shape)
        counted[:, : network.always_run_tokens] = body[:, : network.always_run_tokens] = 0
        rows = counted.flatten().nonzero()[:, 0]
        kl, grad = distil(student.detach().flatten(0, 1)[rows], teacher[rows], network.base.head, torch.ones(len(rows)))
        executed = trace.executed(body, network.shape.n_layer)
        self.optimizer.zero_grad(set_to_none=True)
        outputs, grads = [student.flatten(0, 1)[rows]], [grad]
        if self.gate_lr:
            outputs.append(1 - trace.skipped(body) / (body.sum() * network.shape.n_layer))
            grads.append(torch.tensor(self.price))
        torch.autograd.backward(outputs, grads)
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self._factor(n_steps)
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.price = max(0.0, self.price + PRICE_STEP * (executed - self.target))
        self.done += 1
        return Step(float(kl.mean()), executed, shift)

    def _factor(self, n_steps: int) -> float:
        warm = min(1.0, (self.done + 1) / 10)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.done / max(1, n_steps)))))

    def state(self) -> dict:
        return {
            "gates": self.gates.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "price": self.price,
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict) -> None:
        self.gates.load_state_dict(state["gates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.price = state["done"], state.get("price", self.price)
        self.generator.set_state(state["generator"])
