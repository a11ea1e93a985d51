"""The reference one token at a time, with a memory one can edit: what the native memory operations are compared with.

A sequence is a list of cells; a cell holds a position and, per layer, K before rotation and V. Moving a position is
then no more than changing a number. Uses the reference's modules for the maths of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from liquidcli.gate_layout import GatePlace
from liquidcli.reference import LiquidForCausalLM
from liquidcli.reference.attention import Context, attend

END = 1 << 30


@dataclass(eq=False)
class Cell:
    position: int
    layers: tuple[
        tuple[torch.Tensor, torch.Tensor] | None, ...
    ] = ()  # K, V [n_head_kv, head_dim], or dropped, per layer


class Cells:
    """Sequences by number; every method means what llama.h means by the same name.

    shared: one memory for all sequences, where a copy is the same cell and what moves it moves it for all.
    """

    def __init__(self, shared: bool = True) -> None:
        self.shared = shared
        self.cells: dict[int, list[Cell]] = {}

    def positions(self, seq: int) -> list[int]:
        return [cell.position for cell in self.cells.get(seq, [])]

    def next_position(self, seq: int) -> int:
        return max(self.positions(seq), default=-1) + 1

    def n_cells(self) -> int:
        return len({id(cell) for cells in self.cells.values() for cell in cells})

    def seq_rm(self, seq: int, start: int = 0, end: int = END) -> None:
        self.cells[seq] = [cell for cell in self.cells.get(seq, []) if not start <= cell.position < end]

    def seq_cp(self, source: int, target: int, start: int = 0, end: int = END) -> None:
        copied = [cell for cell in self.cells.get(source, []) if start <= cell.position < end]
        if not self.shared:
            copied = [Cell(cell.position, cell.layers) for cell in copied]
        held = self.cells.setdefault(target, [])
        held += [cell for cell in copied if cell not in held]

    def seq_keep(self, seq: int) -> None:
        self.cells = {seq: self.cells.get(seq, [])}

    def own(self, seq: int) -> None:
        """As after saving and loading this sequence: no cell is shared."""
        self.cells[seq] = [Cell(cell.position, cell.layers) for cell in self.cells.get(seq, [])]

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """Cells that would come to lie before 0 are gone, for every sequence."""
        for cell in self.cells.get(seq, []):
            cell.position += delta if start <= cell.position < end else 0
        self.cells = {seq: [cell for cell in cells if cell.position >= 0] for seq, cells in self.cells.items()}


class CachedReference(Cells):
    """A model over these cells."""

    def __init__(self, model: LiquidForCausalLM, shared: bool = True) -> None:
        super().__init__(shared)
        self.model, self.config = model, model.config

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
        self.config, self.depth = owner.config, owner.config.depth
        self.layers = owner.model.model.layers
        self.context = Context(owner.config, torch.tensor([*(cell.position for cell in cells), position]))
        self.stored: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self.layers)
        self.decisions: list[bool] = []
        self.n_run = 0

    def run(self, h: torch.Tensor) -> torch.Tensor:
        layer = 0
        while layer < len(self.layers):
            gates = {g.scope: g for g in self.depth.gates_at(layer)} if self.depth else {}
            gate = gates.get("layer")
            if gate and gate.is_exit and not self._decide(gate, self.layers[layer].gate_logit(h)):
                return self._leave(h, layer)
            ordinary = gate and not gate.is_exit
            h = self._span(h, gate) if ordinary else self._halves(h, layer, gates)
            layer += gate.span if ordinary else 1
        return h

    def _decide(self, gate: GatePlace, z: torch.Tensor) -> bool:
        self.w = float(z.sigmoid())
        after = len(self.layers) - gate.layer - gate.span
        runs = self.w > self.depth.threshold or self.position < self.depth.always_run_tokens
        self.decisions.append(runs or (gate.scope == "layer" and self.n_run + after < self.depth.min_layers))
        return self.decisions[-1]

    def _leave(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        self.decisions += [False] * (len(self.depth.gates) - len(self.decisions))
        self._skip(h, range(layer, len(self.layers)))
        return h

    def _skip(self, h: torch.Tensor, layers: range) -> None:
        if self.depth.kv_policy == "project":
            for layer in layers:
                self._store(self.layers[layer].input_layernorm(h), layer)

    def _span(self, h: torch.Tensor, gate: GatePlace) -> torch.Tensor:
        first, layers = self.layers[gate.layer], range(gate.layer, gate.layer + gate.span)
        if not self._decide(gate, first.gate_logit(h)):
            self._skip(h, layers)
            return first.skipped(h, self._c_skip())
        c_run = self._c_run()
        for layer in layers:
            h = h + self._attend(self.layers[layer].input_layernorm(h), layer)
            h = h + c_run * self._feed(h, layer)
            self.n_run += 1
        return h

    def _halves(self, h: torch.Tensor, layer: int, gates: dict[str, GatePlace]) -> torch.Tensor:
        """A layer without a gate over it as a whole."""
        module, c_run = self.layers[layer], 1.0
        n = module.input_layernorm(h)
        self.n_run += 1
        if "attn" not in gates or self._decide(gates["attn"], module.depth_gate_attn(n)):
            h = h + self._attend(n, layer)
        else:
            self._skip(h, range(layer, layer + 1))
        if "ffn" in gates:
            if not self._decide(gates["ffn"], module.depth_gate_ffn(module.post_attention_layernorm(h))):
                return module.skipped(h, self._c_skip())
            c_run = self._c_run()
        return h + c_run * self._feed(h, layer)

    def _c_run(self) -> float:
        return self.w if self.depth.ffn_scaled_by_gate else 1.0

    def _c_skip(self) -> float:
        return 1 - self.w if self.depth.adapter_scaled_by_gate else 1.0

    def _feed(self, h: torch.Tensor, layer: int) -> torch.Tensor:
        module = self.layers[layer]
        return module.feed(module.post_attention_layernorm(h)[None])[0][0]

    def _store(self, n: torch.Tensor, layer: int) -> torch.Tensor:
        """Stores this layer's K and V; returns the queries."""
        q, k, v = (x[0, :, 0] for x in self.layers[layer].self_attn._project(n[None, None]))  # [heads, head_dim]
        self.stored[layer] = (k, v)
        return q

    def _attend(self, n: torch.Tensor, layer: int) -> torch.Tensor:
        attn, q = self.layers[layer].self_attn, self._store(n, layer)
        cells = [*(cell.layers[layer] for cell in self.cells), self.stored[layer]]
        there = torch.tensor([cell is not None for cell in cells])  # [T]
        blank = torch.zeros_like(self.stored[layer][0])
        keys = torch.stack([blank if cell is None else cell[0] for cell in cells], 1)[None]  # [1, heads, T, head_dim]
        values = torch.stack([blank if cell is None else cell[1] for cell in cells], 1)[None]
        queries = q[None, :, None].expand(-1, -1, keys.shape[2], -1)
        queries = attn._place(queries, self.context, is_query=True)[:, :, -1:]
        mask = self.context.masks[self.config.has_window(layer)][-1:] & there  # [1, T]
        out = attend(queries, attn._place(keys, self.context, is_query=False), values, mask)
        return attn.o_proj(out.flatten())
