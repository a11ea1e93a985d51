"""Mixtures of experts: which layers have one, how experts are weighted, and how checkpoints lay their matrices out.

Knows fused matrices of both orientations and one matrix per expert. Knows no attention and no configuration keys but
those of `liquid`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from gguf import ExpertGatingFuncType
from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError

from . import fields
from .config import Config
from .fields import Field
from .tensors import Row, Target, row
from .transforms import FIRST_HALF, FIRST_ROWS, SAME, SECOND_HALF, SECOND_ROWS, STACK, SWAP

MAX_EXPERTS = 512  # ref: llama.cpp, LLAMA_MAX_EXPERTS
GATING = {"softmax": ExpertGatingFuncType.SOFTMAX, "sigmoid": ExpertGatingFuncType.SIGMOID}


@dataclass(frozen=True)
class Experts:
    """The mixture layers; `layers` is empty for a dense model."""

    layers: frozenset[int]
    n_layer: int
    count: int
    used: int
    size: int
    shared_size: int
    scoring: str
    norm: bool
    scale: float
    before_ffn: bool

    @classmethod
    def read(cls, config: Config, n_layer: int) -> Experts:
        found = cls(
            layers=frozenset(config.items("moe_layers", int, default=())),
            n_layer=n_layer,
            count=config.integer("num_local_experts", 0, low=0, high=MAX_EXPERTS),
            used=config.integer("num_experts_per_tok", 0, low=0, high=MAX_EXPERTS),
            size=config.integer("intermediate_size", 0, low=0),
            shared_size=config.integer("shared_expert_intermediate_size", 0, low=0),
            scoring=config.choice("scoring_func", GATING, "softmax"),
            norm=config.flag("norm_topk_prob", False),
            scale=config.positive("routed_scaling_factor", 1.0),
            before_ffn=config.flag("expert_weight_before_ffn", False),
        )
        found.check()
        return found

    def check(self) -> None:
        if self.layers and not 0 < self.used <= self.count:
            raise IntegrityError(
                f"config.json: {self.used} experts per token of {self.count}, expected at least one and at most all"
            )
        if self.layers and (max(self.layers) >= self.n_layer or not self.size):
            raise IntegrityError("config.json: moe_layers names a layer too many, or intermediate_size is missing")

    def dims(self) -> dict[str, int]:
        return {"e": self.count, "x": self.size, "2x": 2 * self.size, "s": self.shared_size}

    def fields(self) -> list[Field]:
        if not self.layers:
            return []
        found = [
            fields.array("liquid.moe_layers", [i in self.layers for i in range(self.n_layer)], Type.BOOL),
            fields.u32("liquid.expert_count", self.count),
            fields.u32("liquid.expert_used_count", self.used),
            fields.u32("liquid.expert_feed_forward_length", self.size),
            fields.u32("liquid.expert_gating_func", GATING[self.scoring]),
            fields.boolean("liquid.expert_weights_norm", self.norm),
            fields.f32("liquid.expert_weights_scale", self.scale),
            fields.boolean("liquid.expert_weight_before_ffn", self.before_ffn),
        ]
        if self.shared_size:
            found.append(fields.u32("liquid.expert_shared_feed_forward_length", self.shared_size))
        return found


@dataclass(frozen=True)
class Layout:
    """How a family of checkpoints calls a mixture's parts; fused matrices are [E, in, out] or [E, out, in]."""

    module: str = "feed_forward"
    router: str = "router"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    input_first: bool = True


def expert_rows(layout: Layout, layer: int, experts: Experts, present: Collection[str]) -> Iterator[Row]:
    """A mixture layer's rows; `present` tells whether its experts are fused or lie apart."""
    source = "model.layers.{i}." + layout.module
    yield row(f"{source}.{layout.router}.weight", "blk.{i}.ffn_gate_inp.weight", "e d", role="router")
    apart = (f"{source}.experts.{expert}.{layout.gate}.weight".format(i=layer) for expert in range(experts.count))
    if any(name in present for name in apart):
        yield from _stacked(layout, f"{source}.experts", experts.count)
    else:
        yield from _fused(f"{source}.experts", layout.input_first)
    if experts.shared_size:
        yield from _shared(f"{source}.shared_expert")


def _fused(source: str, input_first: bool) -> Iterator[Row]:
    shapes = ("e d 2x", "e x d") if input_first else ("e 2x d", "e d x")
    gate, up, down = (FIRST_HALF, SECOND_HALF, SWAP) if input_first else (FIRST_ROWS, SECOND_ROWS, SAME)
    halves = (
        Target("blk.{i}.ffn_gate_exps.weight", "e x d", gate, "ffn_gate"),
        Target("blk.{i}.ffn_up_exps.weight", "e x d", up, "ffn_up"),
    )
    yield Row(((f"{source}.gate_up_proj", shapes[0]),), halves)
    yield row(f"{source}.down_proj", "blk.{i}.ffn_down_exps.weight", shapes[1], down, to="e d x", role="ffn_down")


def _stacked(layout: Layout, source: str, count: int) -> Iterator[Row]:
    parts = (("gate", layout.gate, "x d"), ("up", layout.up, "x d"), ("down", layout.down, "d x"))
    for part, name, shape in parts:
        sources = tuple((f"{source}.{expert}.{name}.weight", shape) for expert in range(count))
        yield Row(sources, (Target(f"blk.{{i}}.ffn_{part}_exps.weight", f"e {shape}", STACK, f"ffn_{part}"),))


def _shared(source: str) -> Iterator[Row]:
    for part, shape in (("gate", "s d"), ("up", "s d"), ("down", "d s")):
        yield row(f"{source}.{part}_proj.weight", f"blk.{{i}}.ffn_{part}_shexp.weight", shape, role=f"ffn_{part}")
