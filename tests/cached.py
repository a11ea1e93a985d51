"""The reference one token at a time, with a memory one can edit: what the native memory operations are compared with.

A sequence is a list of cells; a cell holds a position and, per layer, K before rotation and V. Moving a position is
then no more than changing a number. Uses the reference's modules for the maths of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from liquidcli.reference import LiquidForCausalLM
from liquidcli.reference.attention import Context, attend


@dataclass(frozen=True)
class Cell:
    position: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # K, V [n_head_kv, head_dim] each, one per layer


class CachedReference:
    """Sequences by number; every method means what llama.h means by the same name."""

    def __init__(self, model: LiquidForCausalLM) -> None:
        self.model, self.config = model, model.config
        self.cells: dict[int, list[Cell]] = {}

    def next_position(self, seq: int) -> int:
        return max((cell.position for cell in self.cells.get(seq, [])), default=-1) + 1

    def seq_rm(self, seq: int, start: int, end: int) -> None:
        self.cells[seq] = [cell for cell in self.cells.get(seq, []) if not start <= cell.position < end]

    def seq_cp(self, source: int, target: int) -> None:
        self.cells[target] = list(self.cells.get(source, []))

    def seq_keep(self, seq: int) -> None:
        self.cells = {seq: self.cells.get(seq, [])}

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        moved = [replace(c, position=c.position + delta) if start <= c.position < end else c for c in self.cells[seq]]
        self.cells[seq] = moved

    def decode(self, seq: int, token: int) -> tuple[torch.Tensor, list[bool]]:
        """Logits [n_vocab] of the next token and its decisions."""
        cells, position = self.cells.setdefault(seq, []), self.next_position(seq)
        step = _Step(self, cells, position)
        hidden = step.run(self.model.model.embed_tokens.weight[token])
        self.cells[seq] = [*cells, Cell(position, tuple(step.stored))]
        head = self.model.model.embed_tokens if self.config.tie_word_embeddings else self.model.lm_head
        return head.weight @ self.model.model.norm(hidden), step.decisions


class _Step:
    def __init__(self, owner: CachedReference, cells: list[Cell], position: int) -> None:
        self.owner, self.cells, self.position = owner, cells, position
        self.context = Context(owner.config, torch.tensor([*(cell.position for cell in cells), position]))
        self.stored: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.decisions: list[bool] = []
        self.n_run = 0

    def run(self, h: torch.Tensor) -> torch.Tensor:
        layer, depth = 0, self.owner.config.depth
        while layer < self.owner.config.num_hidden_layers:
            span = depth.gate_span[layer] if depth else 0
            h = self._span(h, layer, span) if span else self._layer(h, layer, 1.0)
            layer += max(span, 1)
        return h

    def _span(self, h: torch.Tensor, first: int, span: int) -> torch.Tensor:
        depth, n_layer = self.owner.config.depth, self.owner.config.num_hidden_layers
        layers = self.owner.model.model.layers
        w = float(layers[first].gate_logit(h).sigmoid())
        too_shallow = self.n_run + n_layer - first - span < depth.min_layers
        runs = w > depth.threshold or too_shallow or self.position < depth.always_run_tokens
        self.decisions.append(runs)
        if runs:
            for layer in range(first, first + span):
                h = self._layer(h, layer, w if depth.ffn_scaled_by_gate else 1.0)
            return h
        for layer in range(first, first + span):
            self._attend(layers[layer].input_layernorm(h), layer)
        return layers[first].skipped(h, 1 - w if depth.adapter_scaled_by_gate else 1.0)

    def _layer(self, h: torch.Tensor, layer: int, c_run: float) -> torch.Tensor:
        module = self.owner.model.model.layers[layer]
        h = h + self._attend(module.input_layernorm(h), layer)
        out = module.feed_forward(module.post_attention_layernorm(h)[None])
        self.n_run += 1
        return h + c_run * (out[0] if isinstance(out, tuple) else out)[0]

    def _attend(self, n: torch.Tensor, layer: int) -> torch.Tensor:
        """Stores this layer's K and V, and attends."""
        attn, config = self.owner.model.model.layers[layer].self_attn, self.owner.config
        q, k, v = (x[0, :, 0] for x in attn._project(n[None, None]))  # [heads, head_dim]
        self.stored.append((k, v))
        keys = torch.stack([*(cell.layers[layer][0] for cell in self.cells), k], 1)[None]  # [1, heads, T, head_dim]
        values = torch.stack([*(cell.layers[layer][1] for cell in self.cells), v], 1)[None]
        queries = q[None, :, None].expand(-1, -1, keys.shape[2], -1)
        queries = attn._place(queries, self.context, is_query=True)[:, :, -1:]
        mask = self.context.masks[config.has_window(layer)][-1:]  # [1, T]
        out = attend(queries, attn._place(keys, self.context, is_query=False), values, mask)
        return attn.o_proj(out.flatten())
