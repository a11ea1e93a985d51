"""What `liquid quantize` shows: a plan, the table of every type, the figures of a finished file.

Knows columns and sentences. Chooses and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ui.console import out

if TYPE_CHECKING:
    from ..gguf_file import GGUFFile
    from ..quant import Plan, Result

Need = Callable[["Plan"], int]  # bytes of memory


def memory_at(f: GGUFFile, n_ctx: int) -> tuple[int, Need]:
    """The context that is meant, and what a plan's file would need with it."""
    from ..runtime.info import DEFAULT_CTX, trained_context
    from ..runtime.machine import memory_need

    n_ctx = n_ctx or min(trained_context(f.metadata), DEFAULT_CTX)
    metadata = f.metadata

    def need(plan: Plan) -> int:
        return memory_need(metadata, plan.size_bytes, plan.tensors, n_ctx=n_ctx, n_ubatch=512).total_bytes

    return n_ctx, need


def show_sizes(plans: list[Plan], n_ctx: int, need: Need, available: int | None) -> None:
    from ..amounts import size_text

    fits = {plan.type.name: None if available is None else need(plan) <= available for plan in plans}
    if out.json_mode:
        out.json(
            [
                {
                    **plan.as_json(with_tensors=False),
                    "use": plan.type.use,
                    "n_ctx": n_ctx,
                    "memory_bytes": need(plan),
                    "fits": fits[plan.type.name],
                }
                for plan in plans
            ]
        )
        return
    word = {True: "yes", False: "no", None: "?"}
    rows = [
        (p.type.name, size_text(p.size_bytes), f"{p.bits_per_weight:.2f}", size_text(need(p)), word[fits[p.type.name]],
         p.type.use)
        for p in plans
    ]  # fmt: skip
    out.table(["TYPE", ">SIZE", ">BITS/WEIGHT", ">MEMORY", "FITS", "USE"], rows)
    have = "unknown" if available is None else size_text(available)
    out.talk(f"memory: with a context of {n_ctx} tokens (-c N); available here: {have}")


def show_plan(plan: Plan, targets: list[Path], reason: str | None, *, verbose: bool) -> None:
    from ..quant import schema

    if out.json_mode:
        out.json({**plan.as_json(), **_chosen(reason), "output": str(targets[0]), "sha256": None, "seconds": None})
        return
    if verbose:
        _show_tensors(plan)
    else:
        out.data(schema(plan))
    if plan.needs_imatrix:
        out.warn(f"{plan.without_importance[0]!r} and others need --imatrix FILE; liquid imatrix makes one")
    out.talk(f"{targets[0]} would have {figures(plan)}")


def _show_tensors(plan: Plan) -> None:
    from ..amounts import size_text

    rows = [
        (t.name, "x".join(map(str, t.shape)), t.source_type.name, t.type.name, size_text(t.size_bytes), t.reason)
        for t in plan.tensors
    ]
    out.table(["TENSOR", ">SHAPE", "FROM", "TO", ">SIZE", "WHY"], rows)


def show_result(result: Result, reason: str | None) -> None:
    from ..amounts import size_text

    if out.json_mode:
        out.json({**result.as_json(), **_chosen(reason)})
        return
    plan = result.plan
    if plan.n_unweighted:
        out.warn(f"{plan.imatrix} says nothing of {plan.n_unweighted} matrices; they were made without importance")
    pace = f"{plan.source_bytes / 1e6 / max(result.seconds, 1e-9):.0f} MB/s"
    taken = f", {size_text(result.resumed_bytes)} of it from the run before" if result.resumed_bytes else ""
    out.talk(f"{figures(plan)}, in {result.seconds:.1f} s ({pace}){taken}, sha256 {result.sha256}")
    out.data("\n".join(map(str, result.outputs)))


def figures(plan: Plan) -> str:
    from ..amounts import size_text

    text = f"{size_text(plan.size_bytes)}, {plan.bits_per_weight:.2f} bits per weight"
    if plan.n_fallbacks:
        tensors = "1 tensor" if plan.n_fallbacks == 1 else f"{plan.n_fallbacks} tensors"
        text += f"; {tensors} fell back to a type that divides their rows"
    return text


def _chosen(reason: str | None) -> dict[str, Any]:
    return {"chosen": reason} if reason else {}
