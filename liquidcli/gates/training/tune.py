"""Second stage: adapters (and, if asked, gates) trained end to end towards the full-depth model, under hard decisions.

Knows one optimization step and its state. Gates decide as they will at run time; their threshold is shifted at random
from step to step so that every part of the dial is trained. Knows nothing of where rows come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .losses import SampledHead, distil
from .network import Gates, Network

PRICE_STEP = 0.2  # nats by which a step that ran everything at a target of nothing would raise the price
UPDATE_LR = 0.3  # the base's low-rank updates learn slower than adapters


@dataclass
class Step:
    """What one step saw."""

    kl: float  # nats per prediction, at this step's threshold
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
    precision: str = "float32"  # of the layers' matrix products
    sampled: SampledHead | None = None  # the loss sees a part of the vocabulary
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

    def step(self, rows: Sequence[tuple[Tensor, Tensor]], progress: float) -> Step:
        """One update from rows of tokens [1, T] and the predictions that count [1, T], each prediction worth the same;
        `progress`: the part of the run that is done, for the learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        shift = self.jitter * float(torch.randn((), generator=self.generator, device="cpu"))
        counted = [self._counted(counts) for _, counts in rows]
        total = max(1.0, sum(float(counts.sum()) for counts in counted))
        head, added = self.sampled.draw(self.generator) if self.sampled else (self.network.base.head, 0.0)
        kl = executed = 0.0
        for (tokens, _), counts in zip(rows, counted, strict=True):
            part = float(counts.sum()) / total
            if not part:
                continue
            row_kl, row_executed = self._backward(tokens, counts, shift, part, head, added)
            kl, executed = kl + part * row_kl, executed + part * row_executed
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self._factor(progress)
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        self.price = max(0.0, self.price + PRICE_STEP * (executed - self.target))
        self.done += 1
        return Step(kl, executed, shift)

    def _counted(self, counts: Tensor) -> Tensor:
        counts = counts.clone()
        counts[:, : self.network.always_run_tokens] = 0
        return counts

    def _backward(
        self, tokens: Tensor, counts: Tensor, shift: float, part: float, head: Tensor, added: Tensor | float
    ) -> tuple[float, float]:
        """Gradients of `part` of the loss; (mean KL, executed share) of the row."""
        network, start = self.network, min(self.gates.layers)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            with torch.no_grad():
                h = network.lower(tokens, start)
                teacher = network.final(network.full(h, start)).flatten(0, 1)
            out, trace = network.gated(h, start, self.gates, shift)
            student = network.final(out).flatten(0, 1)
        rows = counts.flatten().nonzero()[:, 0]
        kl, grad = distil(student.detach()[rows], teacher[rows], head, torch.ones(len(rows)), added)
        body = torch.ones(tokens.shape)
        body[:, : network.always_run_tokens] = 0
        outputs, grads = [student[rows]], [grad * part]
        if self.gate_lr:
            outputs.append(1 - trace.skipped(body) / (body.sum() * network.shape.n_layer))
            grads.append(torch.tensor(self.price * part))
        torch.autograd.backward(outputs, grads)
        return float(kl.mean()), trace.executed(body, network.shape.n_layer)

    def _factor(self, progress: float) -> float:
        warm = min(1.0, (self.done + 1) / 10)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

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
        self.done, self.price = state["done"], state["price"]
        self.generator.set_state(state["generator"])
