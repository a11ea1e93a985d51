"""Every type's size for one model, and the one to take for a budget.

Knows budgets in bytes and in bits per weight. What else takes memory is told by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from liquidcli.amounts import parse_size, size_text
from liquidcli.errors import LiquidError, MemoryFitError, UsageError
from liquidcli.gguf_file import GGUFFile, open_gguf

from .options import Options
from .plan import Plan, plan_file
from .types import FILE_TYPES, OFFERED, TRAINED_FOR


@dataclass(frozen=True)
class Choice:
    """A plan, and why it and no other."""

    plan: Plan
    reason: str


def plan_every_type(path: Path | str, options: Options = Options(), imatrix: Path | None = None) -> list[Plan]:
    """A plan for each type on offer, smallest file first. Sizes only: whether requantizing is allowed is not asked."""
    with open_gguf(path) as f:
        return plans_of(f, options, imatrix)


def plans_of(f: GGUFFile, options: Options = Options(), imatrix: Path | None = None) -> list[Plan]:
    options = replace(options, allow_requantize=True)
    plans = [plan_file(f, FILE_TYPES[name], options, imatrix) for name in OFFERED]
    return sorted(plans, key=lambda plan: plan.size_bytes)


def largest_that_fits(
    plans: Sequence[Plan], budget_bytes: int, needed_bytes: Callable[[Plan], int] = lambda plan: plan.size_bytes,
    budget_name: str = "",
) -> Choice:  # fmt: skip
    """Of plans sorted by size, the last within the budget; of two equally large ones the first, F16 before BF16.

    `budget_name` is the budget as somebody wrote it.
    """
    open_ones = _usable(plans)
    fitting = [plan for plan in open_ones if needed_bytes(plan) <= budget_bytes]
    if not fitting:
        least = open_ones[0]
        raise MemoryFitError(
            f"{least.type.name}, the smallest type to choose from, needs {size_text(needed_bytes(least))} for "
            f"{least.input.name}, the budget is {size_text(budget_bytes)}",
            hint=_smaller_hint(plans, lambda plan: needed_bytes(plan) <= budget_bytes),
        )
    best = max(fitting, key=lambda plan: plan.size_bytes)
    above = [plan for plan in open_ones if plan.size_bytes > best.size_bytes]
    budget = f"{budget_name} ({size_text(budget_bytes)})" if budget_name else size_text(budget_bytes)
    reason = f"{best.type.name} needs {size_text(needed_bytes(best))}, the budget is {budget}"
    if above:
        reason += f"; {above[0].type.name}, the next, would need {size_text(needed_bytes(above[0]))}"
    return Choice(best, reason + _no_change(best))


def _no_change(plan: Plan) -> str:
    """What a person who wants a smaller file should know of a type that makes none."""
    if any(tensor.type != tensor.source_type for tensor in plan.tensors):
        return ""
    return f"; {plan.input.name} has that type already, so this makes a copy of the same size"


def closest_below(plans: Sequence[Plan], target_bpw: float) -> Choice:
    """Of plans sorted by size, the last with at most so many bits per weight, over the whole file."""
    if not target_bpw > 0:
        raise UsageError(f"{target_bpw} bits per weight cannot be", hint="for example --target-bpw 4.5")
    open_ones = _usable(plans)
    fitting = [plan for plan in open_ones if plan.bits_per_weight <= target_bpw]
    if not fitting:
        least = open_ones[0]
        raise LiquidError(
            f"{least.type.name}, the smallest type to choose from, takes {least.bits_per_weight:.2f} bits per weight "
            f"of {least.input.name}, at most {target_bpw:g} were asked for",
            hint=_smaller_hint(plans, lambda plan: plan.bits_per_weight <= target_bpw),
        )
    best = max(fitting, key=lambda plan: plan.size_bytes)
    above = [plan for plan in open_ones if plan.size_bytes > best.size_bytes]
    reason = f"{best.type.name} takes {best.bits_per_weight:.3f} bits per weight of {target_bpw:g}"
    if above:
        reason += f"; {above[0].type.name}, the next, would take {above[0].bits_per_weight:.3f}"
    return Choice(best, reason + _no_change(best))


def _usable(plans: Sequence[Plan]) -> list[Plan]:
    """Without types that only models trained for them survive, and without those that want an importance matrix."""
    return [plan for plan in plans if plan.type.name not in TRAINED_FOR and not plan.needs_imatrix]


def _smaller_hint(plans: Sequence[Plan], fits: Callable[[Plan], bool]) -> str:
    names = [plan.type.name for plan in plans if plan.needs_imatrix and fits(plan)]
    if names:
        return f"with --imatrix FILE, {names[-1]} would do; liquid imatrix makes one"
    return "liquid quantize IN --all lists every type with its size"


def budget_bytes(text: str) -> int:
    """`8G` and `8GiB` are 8 * 2^30, `8GB` is 8 * 10^9."""
    return parse_size(text, hint="for example --fit 8G or --fit 500M")
