"""LiquidForCausalLM: the architecture as one plain torch module whose state_dict is the Hugging Face checkpoint.

Every token passes through every layer and `where` picks the outcome: no cache, no saving, the definition in the open.

    n = RMSNorm(h; input_layernorm);  w = sigmoid(gate(n));  run = w > threshold
    K, V from n, run or not                      (later layers of a skipped span: from the state that entered the span)
    run:   h1 = h + Attn(n);  h' = h1 + c_run * FFN(RMSNorm(h1; post_attention_layernorm))
           (sandwich_norm: what Attn and FFN give is normed before it is added; an adapter's output never is)
    skip:  h' = h + c_skip * Adapter(RMSNorm(h; post_attention_layernorm of the span's first layer))

Gates over halves pick h1 and h' one by one. A token that left by an exit keeps its state through all layers behind it:
so `project` gives it their K,V from there. Under `drop` attention sees only tokens that ran it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from liquidcli.gate_layout import GatePlace

from .attention import Context, RMSNorm
from .config import LiquidConfig
from .gates import Decision, Mix, Policy
from .layer import DecoderLayer
from .progress import Progress, Trace

__all__ = ["LiquidForCausalLM", "Output", "Trace"]


@dataclass
class Output:
    logits: torch.Tensor  # [B, T, n_vocab]
    trace: Trace
    hidden: torch.Tensor  # [B, T, hidden], after the final norm


class LiquidModel(nn.Module):
    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: torch.Tensor, run: Progress) -> torch.Tensor:
        h = self.embed_tokens(tokens) * self.config.embedding_multiplier  # [B, T, hidden]
        layer = 0
        while layer < self.config.num_hidden_layers:
            gates = run.gates_at(layer)
            if "layer" in gates:
                h = self._span(h, run, gates["layer"])
            elif gates and "exit" not in gates:
                h = self._halves(h, run, layer, gates)
            else:
                if "exit" in gates:
                    run.leave(run.decide(gates["exit"], self.layers[layer].gate_logit(h)).mix)
                h = self._layer(h, run, layer, run.inside)
            layer += gates["layer"].span if "layer" in gates else 1
        return self.norm(h)

    def _layer(
        self, h: torch.Tensor, run: Progress, layer: int, ran: Mix, c_run: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        inside, experts = self.layers[layer](h, run.context, c_run, run.stored(ran))
        run.layer_ran(ran, experts)
        return ran(inside, h)

    def _span(self, h: torch.Tensor, run: Progress, gate: GatePlace) -> torch.Tensor:
        first, entered = self.layers[gate.layer], h
        chosen = run.decide(gate, first.gate_logit(h))
        c_run, c_skip = self._scales(chosen)
        for layer in range(gate.layer, gate.layer + gate.span):
            h = self._layer(h, run, layer, run.inside & chosen.mix, c_run)
        outside, skipped = first.skipped(entered, c_skip), run.inside & ~chosen.mix
        if skipped.hard:
            return skipped(outside, h)
        return h + skipped.share[..., None].to(h.dtype) * (outside - entered)

    def _halves(self, h: torch.Tensor, run: Progress, layer: int, gates: dict[str, GatePlace]) -> torch.Tensor:
        module, attends = self.layers[layer], run.inside
        n = module.input_layernorm(h)
        if "attn" in gates:
            attends = attends & run.decide(gates["attn"], module.depth_gate_attn(n)).mix
        h1 = attends(h + module.attend(n, run.context, run.stored(attends)), h)
        x = module.post_attention_layernorm(h1)
        out, experts = module.feed(x)
        if "ffn" not in gates:
            run.halves_ran(attends, run.inside, module.attention_share(), experts)
            return run.inside(h1 + out, h1)
        chosen = run.decide(gates["ffn"], module.depth_gate_ffn(x))
        c_run, c_skip = self._scales(chosen)
        run.halves_ran(attends, run.inside & chosen.mix, module.attention_share(), experts)
        return run.inside(chosen.mix(h1 + c_run * out, module.skipped(h1, c_skip)), h1)

    def _scales(self, chosen: Decision) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """c_run and c_skip, [B, T, 1] each or 1."""
        depth, w = self.config.depth, chosen.w[..., None]
        return w if depth.ffn_scaled_by_gate else 1.0, 1 - w if depth.adapter_scaled_by_gate else 1.0


class LiquidForCausalLM(nn.Module):
    def __init__(self, config: LiquidConfig) -> None:
        super().__init__()
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
        run = Progress(self.config, Context(self.config, positions), policy, tokens)
        hidden = self.model(tokens, run)
        head = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        logits = nn.functional.linear(hidden, head)
        if cap := self.config.final_logit_softcapping:
            logits = cap * torch.tanh(logits / cap)
        return Output(logits, run.trace(), hidden)
