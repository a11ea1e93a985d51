"""Which architecture is written: llama.cpp's own where its graph computes the model, else `liquid` without gates.

Knows how to hand a family's model over, and what may be written all the same. What llama.cpp's own architecture of a
family lacks is the family's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from liquidcli.errors import LiquidError

from .arch.liquid import Liquid
from .config import Config
from .registry import Architecture, Family, Reason
from .tensors import Row


def stock_or_liquid(model: Architecture, *, stock: bool = False) -> tuple[Architecture, list[str]]:
    """What to write of a model, and warnings; `stock`: llama.cpp's own architecture wherever it loads."""
    if not isinstance(model, Family):
        if stock:
            raise LiquidError("--stock: llama.cpp has no architecture for this checkpoint", hint="leave out --stock")
        return model, []
    reasons = model.beyond_stock()
    if not reasons:
        return model, []
    name, why = model.gguf_name, _joined(reasons)
    refused = [reason for reason in reasons if not reason.loads]
    if stock and refused:
        raise LiquidError(
            f"--stock: llama.cpp's `{name}` cannot load this model: it {_joined(refused)}",
            hint="leave out --stock: this project's library computes it as architecture `liquid`",
        )
    if stock:
        return model, [f"becomes architecture `{name}` and computes something else: llama.cpp's `{name}` {why}"]
    advice = "" if refused else f" (--stock writes `{name}` all the same)"
    if model.rope.kind == "longrope":
        raise LiquidError(f"rope_type longrope is only supported for llama.cpp's `{name}`, but that {why}{advice}")
    told = f"becomes architecture `liquid`, which needs this project's library: llama.cpp's `{name}` {why}{advice}"
    return WithoutGates(model), [told]


def _joined(reasons: Iterable[Reason]) -> str:
    return "; it ".join(reason.text for reason in reasons)


class WithoutGates(Liquid):
    """The family's tensors under the keys of `liquid`."""

    def __init__(self, family: Family) -> None:
        super().__init__(Config(family.liquid_words()), ())
        self.family, self.rope, self.dims = family, family.rope, family.dims

    def rows(self) -> Iterator[Row]:
        yield from self.family.rows()
