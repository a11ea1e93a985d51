"""A plan as a short text: per kind of tensor its type, then the layers that differ.

What `--dry-run` shows and what the golden tables hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .plan import Plan, TensorPlan

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


def schema(plan: Plan) -> str:
    """`blk.*.attn_v  Q4_K  except Q6_K at 0-3 6`, one line per kind of tensor."""
    kinds: dict[str, list[tuple[int | None, TensorPlan]]] = {}
    for tensor in plan.tensors:
        match = _LAYER.match(tensor.name)
        name = f"blk.*.{match[2]}" if match else tensor.name
        kinds.setdefault(name.removesuffix(".weight"), []).append((int(match[1]) if match else None, tensor))
    width = max(map(len, kinds))
    usual = plan.type.default.name
    return "\n".join(f"{name:<{width}}  {_types(rows, usual)}" for name, rows in kinds.items())


def _types(rows: list[tuple[int | None, TensorPlan]], usual: str) -> str:
    counts = Counter(tensor.type.name for _, tensor in rows)
    default = usual if usual in counts else counts.most_common(1)[0][0]
    layers = {name: [i for i, t in rows if t.type.name == name and i is not None] for name in counts if name != default}
    exceptions = ", ".join(f"{name} at {ranges(where)}" for name, where in layers.items())
    return f"{default}  except {exceptions}" if exceptions else default


def ranges(numbers: Iterable[int]) -> str:
    """0 1 2 5 -> `0-2 5`"""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
