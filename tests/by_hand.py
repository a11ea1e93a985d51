"""The architecture's formulas for one sequence, token by token, from the checkpoint's tensors: scalar code, no module.

Dense, rotary models only. Shares no code with the reference but its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from liquidcli.reference import LiquidForCausalLM

NORM1, NORM2 = "input_layernorm.weight", "post_attention_layernorm.weight"


class ByHand:
    def __init__(self, model: LiquidForCausalLM) -> None:
        self.config, self.depth = model.config, model.config.depth
        self.n_layer = model.config.num_hidden_layers
        self.tensors = dict(model.state_dict())
        self.cache: list[list[tuple[int, torch.Tensor, torch.Tensor]]] = [[] for _ in range(self.n_layer)]
        self.position = -1

    def token(self, token: int) -> tuple[torch.Tensor, list[float], list[bool], float]:
        """Logits, w and decisions of every gate, layers run."""
        self.position += 1
        self.ws: list[float] = []
        self.runs: list[bool] = []
        self.n_run, self.executed = 0, 0.0
        h, layer = self.tensors["model.embed_tokens.weight"][token], 0
        while layer < self.n_layer:
            if self.flag("gate_exit", layer, False) and not self.asks(layer, h, "depth_gate", self.n_run):
                return self.leave(h, layer)
            ordinary = self.depth.gate_span[layer] and not self.flag("gate_exit", layer, False)
            scope = self.flag("gate_scope", layer, "layer")
            if ordinary and scope == "layer":
                h = self.span(h, layer, self.depth.gate_span[layer])
                layer += self.depth.gate_span[layer]
            else:
                h = self.halves(h, layer, scope.split("+") if ordinary else [])
                layer += 1
        return self.end(h)

    def end(self, h: torch.Tensor) -> tuple[torch.Tensor, list[float], list[bool], float]:
        logits = self.tensors["lm_head.weight"] @ self.norm(h, "model.norm.weight")
        return logits, self.ws, self.runs, self.executed

    def leave(self, h: torch.Tensor, first: int) -> tuple[torch.Tensor, list[float], list[bool], float]:
        for layer in range(first, self.n_layer):
            if self.depth.kv_policy == "project":
                self.store(layer, h)
            if layer > first and self.depth.gate_span[layer]:
                gates = self.flag("gate_scope", layer, "layer").split("+")
                self.ws += [math.nan] * len(gates)
                self.runs += [False] * len(gates)
        return self.end(h)

    def span(self, h: torch.Tensor, first: int, span: int) -> torch.Tensor:
        entered = h
        run = self.asks(first, h, "depth_gate", self.n_run + self.n_layer - first - span)
        w = self.ws[-1]
        for layer in range(first, first + span):
            if run or self.depth.kv_policy == "project":
                self.store(layer, h)
            if run:
                h = h + self.attend(layer, h)
                h = h + (w if self.depth.ffn_scaled_by_gate else 1) * self.mlp(h, layer, "feed_forward")
        self.n_run += span * run
        self.executed += span * run
        return h if run else self.adapted(entered, first, w)

    def halves(self, h: torch.Tensor, layer: int, gates: list[str]) -> torch.Tensor:
        attends = "attn" not in gates or self.asks(layer, h, "depth_gate_attn", None)
        if attends or self.depth.kv_policy == "project":
            self.store(layer, h)
        if attends:
            h = h + self.attend(layer, h)
        feeds = "ffn" not in gates or self.asks(layer, h, "depth_gate_ffn", None, NORM2)
        w = self.ws[-1] if "ffn" in gates else 1.0
        share = self.attention_share(layer)
        self.n_run += 1
        self.executed += share * attends + (1 - share) * feeds
        if not feeds:
            return self.adapted(h, layer, w)
        return h + (w if self.depth.ffn_scaled_by_gate else 1) * self.mlp(h, layer, "feed_forward")

    def asks(self, layer: int, h: torch.Tensor, gate: str, n_if_skipped: int | None, norm: str = NORM1) -> bool:
        """Whether the gate lets run; `n_if_skipped`: layers that would have run, for what min_layers applies to."""
        head, n = f"model.layers.{layer}.{gate}", self.norm(h, f"model.layers.{layer}.{norm}")
        if f"{head}.enc.weight" in self.tensors:
            n = self.norm(self.tensors[f"{head}.enc.weight"] @ n, f"{head}.norm.weight").tanh()
        if f"{head}.dec.weight" in self.tensors:
            n = self.tensors[f"{head}.dec.weight"] @ n
        z = float(self.tensors[f"{head}.head.weight"] @ n) + float(self.tensors.get(f"{head}.head.bias", 0.0))
        self.ws.append(1 / (1 + math.exp(-z)))
        run = self.ws[-1] > self.depth.threshold or self.position < self.depth.always_run_tokens
        self.runs.append(run or (n_if_skipped is not None and n_if_skipped < self.depth.min_layers))
        return self.runs[-1]

    def adapted(self, h: torch.Tensor, layer: int, w: float) -> torch.Tensor:
        if f"model.layers.{layer}.depth_adapter.up_proj.weight" not in self.tensors:
            return h
        return h + (1 - w if self.depth.adapter_scaled_by_gate else 1) * self.mlp(h, layer, "depth_adapter")

    def flag(self, name: str, layer: int, default):
        values = getattr(self.depth, name)
        return values[layer] if values else default

    def attention_share(self, layer: int) -> float:
        prefix = f"model.layers.{layer}."
        sizes = {n.removeprefix(prefix): t.numel() for n, t in self.tensors.items() if n.startswith(prefix)}
        first = sum(size for name, size in sizes.items() if name == NORM1 or name.startswith("self_attn."))
        second = sum(size for name, size in sizes.items() if name == NORM2 or name.startswith("feed_forward."))
        return first / (first + second)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / math.sqrt(float((x * x).mean()) + self.config.rms_norm_eps) * self.tensors[name]

    def mlp(self, h: torch.Tensor, layer: int, part: str) -> torch.Tensor:
        x = self.norm(h, f"model.layers.{layer}.{NORM2}")
        gate, up, down = (
            self.tensors[f"model.layers.{layer}.{part}.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        z = gate @ x
        return down @ (z / (1 + (-z).exp()) * (up @ x))

    def store(self, layer: int, h: torch.Tensor) -> None:
        keys, values = (self.heads(layer, h, name) for name in ("k_proj", "v_proj"))
        self.cache[layer].append((self.position, self.rotate(keys), values))

    def heads(self, layer: int, h: torch.Tensor, name: str) -> torch.Tensor:
        n = self.norm(h, f"model.layers.{layer}.{NORM1}")
        return (self.tensors[f"model.layers.{layer}.self_attn.{name}.weight"] @ n).view(-1, self.config.head_dim)

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        half = self.config.head_dim // 2
        out = heads.clone()
        for i in range(half):
            angle = self.position * self.config.rope_theta ** (-i / half)
            a, b = heads[:, i], heads[:, i + half]
            out[:, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, i + half] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def sees(self, layer: int) -> Callable[[int], bool]:
        c = self.config
        if not c.layer_types or c.layer_types[layer] == "full_attention":
            return lambda position: True
        if c.layer_types[layer] == "sliding_attention":
            return lambda position: self.position - position < c.sliding_window
        return lambda position: position // c.attention_chunk_size == self.position // c.attention_chunk_size

    def attend(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        c, sees = self.config, self.sees(layer)
        q, out = self.rotate(self.heads(layer, h, "q_proj")), []
        cells = [cell for cell in self.cache[layer] if sees(cell[0])]
        for head in range(c.num_attention_heads):
            group = head * c.num_key_value_heads // c.num_attention_heads
            scores = torch.stack([q[head] @ k[group] for _, k, _ in cells]) / math.sqrt(c.head_dim)
            weights = (scores - scores.max()).exp()
            out.append(sum(p * v[group] for p, (_, _, v) in zip(weights / weights.sum(), cells, strict=True)))
        return self.tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] @ torch.cat(out)
