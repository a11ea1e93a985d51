"""Feed-forward parts: gated MLP (dense, shared expert, skip adapter) and mixture of experts. Know nothing of depth."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .config import LiquidConfig

ACTIVATIONS = {"silu": F.silu, "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh")}
SMALLEST_WEIGHT_SUM = 6.103515625e-5  # the smallest normal number of F16


class MLP(nn.Module):
    """down(act(gate x) * up x): dense layers, the shared expert and the skip adapter alike."""

    def __init__(self, hidden: int, size: int, act: str = "silu") -> None:
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The experts' matrices in Llama 4's layout: input first, gate before up."""

    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        n_expert, hidden, size = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(n_expert, hidden, 2 * size) * hidden**-0.5)
        self.down_proj = nn.Parameter(torch.randn(n_expert, size, hidden) * size**-0.5)

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        gate, up = (x @ self.gate_up_proj[expert]).chunk(2, dim=-1)  # [rows, size]
        return (F.silu(gate) * up) @ self.down_proj[expert]


class MoE(nn.Module):
    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = Experts(config)
        if config.shared_expert_intermediate_size:
            self.shared_expert = MLP(config.hidden_size, config.shared_expert_intermediate_size)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of the experts picked, [rows, k] each, best first."""
        logits = self.router(x).float()
        probs = logits.softmax(-1) if self.config.scoring_func == "softmax" else logits.sigmoid()
        picked = logits.topk(self.config.num_experts_per_tok).indices
        weights = probs.gather(-1, picked)
        if self.config.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=SMALLEST_WEIGHT_SUM)
        return (weights * self.config.routed_scaling_factor).to(x.dtype), picked

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's output [B, T, hidden] and the experts picked [B, T, k]."""
        rows = x.flatten(0, -2)
        weights, picked = self.route(rows)
        out = self.shared_expert(rows) if hasattr(self, "shared_expert") else torch.zeros_like(rows)
        for expert in range(self.config.num_local_experts):
            row, slot = (picked == expert).nonzero(as_tuple=True)
            weight = weights[row, slot, None]
            if self.config.expert_weight_before_ffn:
                y = self.experts(rows[row] * weight, expert)
            else:
                y = self.experts(rows[row], expert) * weight
            out = out.index_add(0, row, y)
        return out.view_as(x), picked.view(*x.shape[:-1], -1)
