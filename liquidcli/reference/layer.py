"""One layer: attention, feed-forward part, its gates and its adapter, and what each half weighs. Decides nothing."""

from __future__ import annotations

import torch
from torch import nn

from .attention import Attention, Context, RMSNorm
from .config import LiquidConfig
from .feed_forward import MLP, MoE
from .gates import DepthGate


class DecoderLayer(nn.Module):
    def __init__(self, config: LiquidConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.feed_forward = (
            MoE(config)
            if layer in config.moe_layers
            else MLP(config.hidden_size, config.intermediate_size_mlp, config.hidden_act)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.sandwich_norm:
            self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for gate in config.depth.gates_at(layer) if config.depth else ():
            self.add_module(gate.stem, DepthGate(config))
        if config.depth and config.depth.has_adapter(layer):
            self.depth_adapter = MLP(config.hidden_size, config.depth.adapter_size)

    def forward(
        self, h: torch.Tensor, context: Context, c_run: torch.Tensor | float = 1.0, stored: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The state when the whole layer runs, and the experts picked."""
        h = h + self.attend(self.input_layernorm(h), context, stored)
        out, experts = self.feed(self.post_attention_layernorm(h))
        return h + c_run * out, experts

    def attend(self, n: torch.Tensor, context: Context, stored: torch.Tensor | None) -> torch.Tensor:
        """What the attention half adds."""
        out = self.self_attn(n, context, stored)
        return self.post_self_attn_layernorm(out) if hasattr(self, "post_self_attn_layernorm") else out

    def feed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the feed-forward half adds, and the experts picked."""
        out, experts = found if isinstance(found := self.feed_forward(x), tuple) else (found, None)
        return self.post_mlp_layernorm(out) if hasattr(self, "post_mlp_layernorm") else out, experts

    def gate_logit(self, h: torch.Tensor) -> torch.Tensor:
        return self.depth_gate(self.input_layernorm(h))  # [B, T]

    def skipped(self, h: torch.Tensor, c_skip: torch.Tensor | float) -> torch.Tensor:
        """The state when what the gate governs is skipped: the span that begins here, or this layer's FFN."""
        if not hasattr(self, "depth_adapter"):
            return h
        return h + c_skip * self.depth_adapter(self.post_attention_layernorm(h))

    def attention_share(self) -> float:
        """The attention half's part of the parameters one token uses; the rest is the feed-forward half's."""
        attention = self._count("self_attn", "input_layernorm", "post_self_attn_layernorm")
        feed_forward: float = self._count("feed_forward", "post_attention_layernorm", "post_mlp_layernorm")
        if isinstance(self.feed_forward, MoE):
            config, experts = self.feed_forward.config, _count(self.feed_forward.experts)
            feed_forward += experts * config.num_experts_per_tok / config.num_local_experts - experts
        return attention / (attention + feed_forward)

    def _count(self, *names: str) -> int:
        return sum(_count(getattr(self, name)) for name in names if hasattr(self, name))


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
