"""One forward pass under way: who is still in, how many layers each token ran, what the gates said; and its trace.

Knows the rules that overrule a gate. Does not compute states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from liquidcli.gate_layout import GatePlace

from .attention import Context
from .config import LiquidConfig
from .gates import Decision, Mix, Policy, decide


@dataclass
class Trace:
    """What happened to each token: z, w are NaN where no gate was evaluated, experts -1 where the layer was skipped."""

    z: torch.Tensor  # [B, T, n_gate], differentiable
    w: torch.Tensor  # [B, T, n_gate], differentiable
    run: torch.Tensor  # bool [B, T, n_gate]
    share: torch.Tensor  # [B, T, n_gate], differentiable: what each outcome was mixed by
    experts: torch.Tensor  # [B, T, n_moe_layer, k]
    layers_run: torch.Tensor  # float64 [B, T]; a layer that ran by half counts by that half's share of its parameters
    n_layer: int

    @property
    def executed_fraction(self) -> float:
        return float(self.layers_run.mean()) / self.n_layer


class Progress:
    def __init__(self, config: LiquidConfig, context: Context, policy: Policy, tokens: torch.Tensor) -> None:
        self.config, self.context, self.policy = config, context, policy
        inside = torch.ones_like(tokens, dtype=torch.bool)
        self.inside = Mix(inside, inside.float(), policy.gate_mode == "hard")  # tokens that have not left by an exit
        self.n_whole = torch.zeros_like(tokens)  # [B, T] layers run, as min_layers counts them
        self.layers_run = torch.zeros_like(tokens, dtype=torch.float64)  # [B, T]
        self.decisions: list[Decision] = []
        self.experts: list[torch.Tensor] = []

    def gates_at(self, layer: int) -> dict[str, GatePlace]:
        """By scope, `exit` for an exit; empty where no gate is to be evaluated."""
        if self.config.depth is None or self.policy.mode == "full":
            return {}
        return {"exit" if gate.is_exit else gate.scope: gate for gate in self.config.depth.gates_at(layer)}

    def decide(self, gate: GatePlace, z: torch.Tensor) -> Decision:
        """Records the decision with NaN and `skip` for tokens that have left, and returns it as it was computed."""
        found = decide(self.policy, z, len(self.decisions), self._must_run(gate))
        soft = self.policy.gate_mode == "soft"  # a relaxed gate lets nobody leave for good
        there = torch.ones_like(self.inside.run) if soft else self.inside.run
        nan, zero = torch.full_like(found.w, float("nan")), torch.zeros_like(found.w)
        told = Mix(found.mix.run & self.inside.run, torch.where(there, found.mix.share, zero), found.mix.hard)
        self.decisions.append(Decision(torch.where(there, z, nan), torch.where(there, found.w, nan), told))
        return found

    def _must_run(self, gate: GatePlace) -> torch.Tensor:
        """Tokens that may not skip what this gate governs: [B, T]."""
        depth, n_layer = self.config.depth, self.config.num_hidden_layers
        must_run = (self.context.positions < depth.always_run_tokens).expand_as(self.n_whole)
        if gate.scope != "layer":
            return must_run
        return must_run | (self.n_whole + (n_layer - gate.layer - gate.span) < depth.min_layers)

    def leave(self, stay: Mix) -> None:
        self.inside = self.inside & stay

    def stored(self, ran: Mix) -> torch.Tensor | None:
        """Whose K,V a layer keeps: everybody's, or under `drop` those of tokens that run its attention."""
        return ran.run if self.config.depth and self.config.depth.kv_policy == "drop" else None

    def layer_ran(self, ran: Mix, experts: torch.Tensor | None) -> None:
        self.n_whole = self.n_whole + ran.run
        self.layers_run = self.layers_run + ran.run
        self._routed(ran, experts)

    def halves_ran(self, attention: Mix, feed: Mix, attention_share: float, experts: torch.Tensor | None) -> None:
        self.n_whole = self.n_whole + self.inside.run
        self.layers_run = self.layers_run + attention_share * attention.run.double()
        self.layers_run = self.layers_run + (1 - attention_share) * feed.run.double()
        self._routed(feed, experts)

    def _routed(self, ran: Mix, experts: torch.Tensor | None) -> None:
        if experts is not None:
            self.experts.append(torch.where(ran.run[..., None], experts, -1))

    def trace(self) -> Trace:
        shape = (*self.n_whole.shape, len(self.config.gates))
        nan = torch.full(shape, float("nan"), device=self.n_whole.device)
        told = {"z": nan, "w": nan, "run": torch.ones_like(nan, dtype=torch.bool), "share": torch.ones_like(nan)}
        if self.decisions:
            columns = {name: [getattr(d, name) for d in self.decisions] for name in ("z", "w")}
            columns |= {name: [getattr(d.mix, name) for d in self.decisions] for name in ("run", "share")}
            told = {name: torch.stack(column, -1) for name, column in columns.items()}
        experts = self.n_whole.new_zeros((*self.n_whole.shape, 0, self.config.num_experts_per_tok))
        if self.experts:
            experts = torch.stack(self.experts, -2)
        return Trace(**told, experts=experts, layers_run=self.layers_run, n_layer=self.config.num_hidden_layers)
