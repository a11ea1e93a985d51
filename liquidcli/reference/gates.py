"""Depth gates and their decisions: the logit of one gate, and what a policy makes of it. Knows nothing of layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from liquidcli.errors import UsageError

from .attention import RMSNorm
from .config import LiquidConfig

MODES = ("auto", "full", "forced")
GATE_MODES = ("hard", "ste", "soft")


class DepthGate(nn.Module):
    """z = head . n + b (linear) or head . dec . tanh(RMSNorm(enc . n)) + b (bottleneck; folded: head . dec at once)."""

    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        depth, hidden = config.depth, config.hidden_size
        width = hidden
        if depth.gate_kind == "bottleneck":
            self.enc = nn.Linear(hidden, depth.gate_rank, bias=False)
            self.norm = RMSNorm(depth.gate_rank, config.rms_norm_eps)
            if depth.gate_folded:
                width = depth.gate_rank
            else:
                self.dec = nn.Linear(depth.gate_rank, hidden, bias=False)
        self.head = nn.Linear(width, 1, bias=depth.gate_bias)

    def forward(self, n: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "enc"):
            n = self.norm(self.enc(n)).tanh()  # [B, T, rank]
        if hasattr(self, "dec"):
            n = self.dec(n)
        return self.head(n).squeeze(-1)  # [B, T]


@dataclass(frozen=True)
class Policy:
    """How gates are obeyed.

    mode: auto (w > threshold); full (no gate is evaluated, w = 1); forced (the table alone decides, w still
    scales). gate_mode: hard decides; ste decides too and passes w's gradient straight through; soft mixes both
    outcomes by a relaxed gate sigmoid((z - logit(threshold) + noise) / temperature) with logistic noise.
    """

    threshold: float
    mode: str = "auto"
    forced: torch.Tensor | None = None  # bool [B or 1, T, n_gate]
    gate_mode: str = "hard"
    noise: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.gate_mode not in GATE_MODES:
            raise UsageError(
                f"depth {self.mode!r} with gates {self.gate_mode!r}: expected one of {MODES} and one of {GATE_MODES}"
            )
        if (self.mode == "forced") != (self.forced is not None):
            raise UsageError(
                "forced decisions need mode 'forced' and a table [n_tokens, n_gate], and the other way round"
            )


@dataclass(frozen=True)
class Mix:
    """How two outcomes become one state: by `run` where decisions are hard, by `share` where gates are trained."""

    run: torch.Tensor  # bool [B, T]
    share: torch.Tensor  # [B, T]: run itself, run with w's gradient, or the relaxed gate
    hard: bool

    def __call__(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        if self.hard:
            return torch.where(self.run[..., None], inside, outside)
        share = self.share[..., None].to(inside.dtype)
        return share * inside + (1 - share) * outside

    def __and__(self, other: Mix) -> Mix:
        return Mix(self.run & other.run, self.share * other.share, self.hard)

    def __invert__(self) -> Mix:
        return Mix(~self.run, 1 - self.share, self.hard)


@dataclass(frozen=True)
class Decision:
    """One gate's outcome for all tokens; all [B, T]."""

    z: torch.Tensor
    w: torch.Tensor
    mix: Mix


def decide(policy: Policy, z: torch.Tensor, gate: int, must_run: torch.Tensor) -> Decision:
    """`must_run` [B, T]: tokens that may not skip (min_layers, always_run_tokens); a forced table overrules it."""
    w = z.sigmoid()
    run = w > torch.tensor(policy.threshold, dtype=w.dtype)
    if policy.mode == "forced":
        run = policy.forced[..., gate].bool().to(z.device).expand_as(run)
        must_run = torch.zeros_like(run)
    run = run | must_run
    share = run.to(w.dtype)
    if policy.gate_mode == "ste":
        share = share + (w - w.detach())
    elif policy.gate_mode == "soft":
        share = torch.where(must_run, torch.ones_like(w), _relaxed(policy, z))
    return Decision(z, w, Mix(run, share, policy.gate_mode == "hard"))


def _relaxed(policy: Policy, z: torch.Tensor) -> torch.Tensor:
    shifted = z - torch.logit(torch.tensor(policy.threshold, dtype=z.dtype))
    if policy.noise:
        uniform = torch.rand_like(z).clamp(1e-6, 1 - 1e-6)
        shifted = shifted + policy.noise * torch.logit(uniform)
    return (shifted / policy.temperature).sigmoid()
