"""A plain model as architecture `liquid` without gates, where llama.cpp's own architecture would compute otherwise.

Knows how to hand a family's model over. What its own architecture lacks is the family's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from liquidcli.errors import LiquidError

from .arch.liquid import Liquid
from .config import Config
from .registry import Architecture
from .rope import Rope


class Family(Architecture, Protocol):
    """What a family's class must tell: `beyond_stock` names what llama.cpp's own graph of it would get wrong."""

    rope: Rope

    def beyond_stock(self) -> list[str]: ...
    def liquid_words(self) -> dict[str, Any]: ...


class WithoutGates(Liquid):
    dense_module = "mlp"

    def __init__(self, family: Family, present: Collection[str], reasons: Sequence[str]) -> None:
        if family.rope.kind == "longrope":
            raise LiquidError(
                f"rope_type longrope is only supported for llama.cpp's `{family.gguf_name}`, but that {reasons[0]}"
            )
        super().__init__(Config(family.liquid_words()), present)
        self.rope = family.rope
        self._why = f"llama.cpp's `{family.gguf_name}` {'; it '.join(reasons)}"

    def warnings(self) -> list[str]:
        return [*super().warnings(), f"becomes architecture `liquid`, which needs this project's library: {self._why}"]


def stock_or_liquid(family: Family, present: Collection[str]) -> Architecture:
    """The family's own architecture where llama.cpp computes it exactly, else `liquid`."""
    reasons = family.beyond_stock()
    if not reasons:
        return family
    return WithoutGates(family, present, reasons)
