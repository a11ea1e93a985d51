"""Every type's size for one model, and the largest that fits.

Knows budgets in bytes of file. Knows nothing of the memory a context takes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from liquidcli.amounts import parse_size
from liquidcli.errors import MemoryFitError
from liquidcli.gguf_file import open_gguf

from .plan import Options, Plan, plan_file
from .types import FILE_TYPES, OFFERED


def plan_every_type(path: Path | str, options: Options = Options(), imatrix: Path | None = None) -> list[Plan]:
    """A plan for each type on offer, smallest file first. Sizes only: whether requantizing is allowed is not asked."""
    options = replace(options, allow_requantize=True)
    with open_gguf(path) as f:
        plans = [plan_file(f, FILE_TYPES[name], options, imatrix) for name in OFFERED]
    return sorted(plans, key=lambda plan: plan.size_bytes)


def largest_that_fits(plans: Sequence[Plan], budget_bytes: int) -> Plan:
    """Of plans sorted by size, the last within the budget; of two equally large ones the first, F16 before BF16."""
    fitting = [plan for plan in plans if plan.size_bytes <= budget_bytes]
    if not fitting:
        least = plans[0]
        raise MemoryFitError(
            f"{least.type.name}, the smallest type, makes {least.size_bytes / 1e9:.3f} GB of {least.input.name}, "
            f"the budget is {budget_bytes / 1e9:.3f} GB"
        )
    return max(fitting, key=lambda plan: plan.size_bytes)


def budget_bytes(text: str) -> int:
    """`8G` and `8GiB` are 8 * 2^30, `8GB` is 8 * 10^9."""
    return parse_size(text, "for example --fit 8G or --fit 500M")
