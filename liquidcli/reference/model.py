"""LiquidForCausalLM: the architecture as one plain torch module whose state_dict is the Hugging Face checkpoint.

Every token passes through every layer and `where` picks the outcome: no cache, no saving, the definition in the open.

    n = RMSNorm(h; input_layernorm);  w = sigmoid(gate(n));  run = w > threshold
    K, V from n, run or not                      (later layers of a skipped span: from the state that entered the span)
    run:   h1 = h + Attn(n);  h' = h1 + c_run * FFN(RMSNorm(h1; post_attention_layernorm))
    skip:  h' = h + c_skip * Adapter(RMSNorm(h; post_attention_layernorm of the span's first layer))
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from liquidcli.errors import LiquidError

from .attention import Attention, Context, RMSNorm
from .config import LiquidConfig
from .feed_forward import MLP, MoE
from .gates import Decision, DepthGate, Policy, decide


@dataclass
class Trace:
    """What happened to each token: z, w are NaN where no gate was evaluated, experts -1 where the layer was skipped."""

    z: torch.Tensor  # [B, T, n_gate], differentiable
    w: torch.Tensor  # [B, T, n_gate], differentiable
    run: torch.Tensor  # bool [B, T, n_gate]
    share: torch.Tensor  # [B, T, n_gate], differentiable: what each outcome was mixed by
    experts: torch.Tensor  # [B, T, n_moe_layer, k]
    layers_run: torch.Tensor  # [B, T]
    n_layer: int

    @property
    def executed_fraction(self) -> float:
        return float(self.layers_run.double().mean()) / self.n_layer


@dataclass
class Output:
    logits: torch.Tensor  # [B, T, n_vocab]
    trace: Trace
    hidden: torch.Tensor  # [B, T, hidden], after the final norm


class DecoderLayer(nn.Module):
    def __init__(self, config: LiquidConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.feed_forward = (
            MoE(config) if layer in config.moe_layers else MLP(config.hidden_size, config.intermediate_size_mlp)
        )
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if layer in config.gate_layers:
            self.depth_gate = DepthGate(config)
            if config.depth.adapter_size:
                self.depth_adapter = MLP(config.hidden_size, config.depth.adapter_size)

    def forward(
        self, h: torch.Tensor, context: Context, c_run: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The state when the layer runs, and the experts picked."""
        h = h + self.self_attn(self.input_layernorm(h), context)
        out = self.feed_forward(self.post_attention_layernorm(h))
        out, experts = out if isinstance(out, tuple) else (out, None)
        return h + c_run * out, experts

    def gate_logit(self, h: torch.Tensor) -> torch.Tensor:
        return self.depth_gate(self.input_layernorm(h))  # [B, T]

    def skipped(self, h: torch.Tensor, c_skip: torch.Tensor | float) -> torch.Tensor:
        """The state when the span that begins here is skipped."""
        if not hasattr(self, "depth_adapter"):
            return h
        return h + c_skip * self.depth_adapter(self.post_attention_layernorm(h))


@dataclass
class _Run:
    """One forward pass under way: the shared context, the policy and what has been recorded."""

    context: Context
    policy: Policy
    layers_run: torch.Tensor  # [B, T]
    decisions: list[Decision] = field(default_factory=list)
    experts: list[torch.Tensor] = field(default_factory=list)

    def layer_ran(self, run: torch.Tensor, experts: torch.Tensor | None) -> None:
        self.layers_run = self.layers_run + run
        if experts is not None:
            self.experts.append(torch.where(run[..., None], experts, -1))


class LiquidModel(nn.Module):
    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: torch.Tensor, run: _Run) -> torch.Tensor:
        h = self.embed_tokens(tokens)  # [B, T, hidden]
        layer = 0
        while layer < self.config.num_hidden_layers:
            span = self.config.depth.gate_span[layer] if self.config.depth else 0
            if span and run.policy.mode != "full":
                h = self._span(h, run, layer, span)
            else:
                h, experts = self.layers[layer](h, run.context)
                run.layer_ran(torch.ones_like(run.layers_run, dtype=torch.bool), experts)
            layer += max(span, 1) if run.policy.mode != "full" else 1
        return self.norm(h)

    def _span(self, h: torch.Tensor, run: _Run, first: int, span: int) -> torch.Tensor:
        depth, entered = self.config.depth, h
        chosen = decide(
            run.policy, self.layers[first].gate_logit(h), len(run.decisions), self._must_run(run, first + span)
        )
        run.decisions.append(chosen)
        c_run = chosen.w[..., None] if depth.ffn_scaled_by_gate else 1.0
        c_skip = 1 - chosen.w[..., None] if depth.adapter_scaled_by_gate else 1.0
        ran, share = chosen.run[..., None], chosen.share[..., None]  # [B, T, 1]
        hard = run.policy.gate_mode == "hard"
        for layer in self.layers[first : first + span]:
            inside, experts = layer(h, run.context, c_run)
            h = torch.where(ran, inside, h) if hard else share * inside + (1 - share) * h
            run.layer_ran(chosen.run, experts)
        outside = self.layers[first].skipped(entered, c_skip)
        return torch.where(ran, h, outside) if hard else h + (1 - share) * (outside - entered)

    def _must_run(self, run: _Run, after: int) -> torch.Tensor:
        """Tokens that may not skip a span ending before layer `after`: [B, T]."""
        depth = self.config.depth
        too_shallow = run.layers_run + (self.config.num_hidden_layers - after) < depth.min_layers
        return too_shallow | (run.context.positions < depth.always_run_tokens)


class LiquidForCausalLM(nn.Module):
    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        _refuse_unsupported(config)
        self.config = config
        self.model = LiquidModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: torch.Tensor,  # int [B, T]
        *,
        depth: str = "auto",
        threshold: float | None = None,
        forced: torch.Tensor | None = None,  # [T, n_gate] or [B, T, n_gate]
        positions: torch.Tensor | None = None,  # [T], default 0, 1, ...
        gate_mode: str = "hard",
        noise: float = 0.0,
        temperature: float = 1.0,
    ) -> Output:
        """Logits and trace of whole sequences. `depth`: auto, full or forced; `threshold` replaces the model's own."""
        own = self.config.depth.threshold if self.config.depth else 0.5
        policy = Policy(own if threshold is None else threshold, depth, forced, gate_mode, noise, temperature)
        positions = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions
        run = _Run(Context(self.config, positions), policy, torch.zeros_like(tokens))
        hidden = self.model(tokens, run)
        head = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        return Output(nn.functional.linear(hidden, head), self._trace(tokens, run), hidden)

    def _trace(self, tokens: torch.Tensor, run: _Run) -> Trace:
        shape = (*tokens.shape, len(self.config.gate_layers))
        not_evaluated = torch.full(shape, float("nan"), device=tokens.device)
        per_gate = {"z": not_evaluated, "w": not_evaluated, "share": torch.ones_like(not_evaluated)}
        per_gate["run"] = torch.ones_like(not_evaluated, dtype=torch.bool)
        if run.decisions:
            per_gate = {name: torch.stack([getattr(d, name) for d in run.decisions], -1) for name in per_gate}
        experts = tokens.new_zeros((*tokens.shape, 0, self.config.num_experts_per_tok))
        if run.experts:
            experts = torch.stack(run.experts, -2)
        return Trace(**per_gate, experts=experts, layers_run=run.layers_run, n_layer=self.config.num_hidden_layers)


def _refuse_unsupported(config: LiquidConfig) -> None:
    depth = config.depth
    if depth is None:
        return
    if depth.kv_policy != "project":
        raise LiquidError(
            f"kv_policy {depth.kv_policy!r} is not supported by the PyTorch reference, expected 'project'"
        )
    if any(scope != "layer" for scope in depth.gate_scope or ()) or any(depth.gate_exit or ()):
        raise LiquidError("attn and ffn scopes and exit gates are not supported by the PyTorch reference")
