"""What `liquid perplexity` prints: one estimate, a comparison, or the curve over several depths as one table.

Knows results as JSON has them. Measures nothing.
"""

from __future__ import annotations

from typing import Any

from ..ui.console import out

Result = dict[str, Any]


def add_ratios(results: list[Result]) -> None:
    """Each depth's perplexity over that of full depth, where the list holds it, else over the base's."""
    full = next((result["ppl"] for result in results if result["depth"]["mode"] == "full"), None)
    for result in results:
        against = full or result.get("base_ppl")
        if against:
            result["ppl_ratio_to_full"] = result["ppl"] / against


def print_results(results: list[Result]) -> None:
    if len(results) > 1:
        out.table(*table(results))
    else:
        _print_one(results[0])


def _print_one(result: Result) -> None:
    out.data(f"Final estimate: PPL = {result['ppl']:.4f} +/- {result['ppl_error']:.5f}")
    used = result["depth"]
    out.talk(f"depth {used['mode']}: {used['layers_run_mean']:.2f} of {used['layers_total']} layers per token")
    if "kld_mean" in result:
        out.data(f"Base: PPL = {result['base_ppl']:.4f} +/- {result['base_ppl_error']:.5f}")
        shown = [name for name in result if name.startswith(("ppl_ratio", "kld", "p_diff", "same"))]
        out.table(("figure", ">value"), [(name, f"{result[name]:.6f}") for name in shown])


_ALONE = ("depth", ">layers/token", ">run", ">PPL", ">+/-", ">ratio", ">t/s")
_COMPARED = ("depth", ">run", ">PPL", ">+/-", ">ratio", ">KLD mean", ">KLD 99%", ">same top", ">t/s")


def table(results: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; what no result has is left out. The base is a row of its own. Fits 80 columns."""
    cells = [_cells(result) for result in results]
    columns = [name for name in (_COMPARED if "KLD mean" in cells[0] else _ALONE) if name.lstrip(">") in cells[0]]
    if "base_ppl" in results[0]:
        ppl, error = results[0]["base_ppl"], results[0]["base_ppl_error"]
        cells.insert(0, {"depth": "base", "PPL": _number(ppl, 8), "+/-": _number(error, 7)})
    return columns, [[row.get(name.lstrip(">"), "-") for name in columns] for row in cells]


def _cells(result: Result) -> dict[str, str]:
    used = result["depth"]
    cells = {
        "depth": str(used["mode"]), "layers/token": f"{used['layers_run_mean']:.2f}",
        "run": f"{used['executed_fraction']:.1%}", "PPL": _number(result["ppl"], 8),
        "+/-": _number(result["ppl_error"], 7), "t/s": _number(result["tokens_per_second"] or 0, 5, decimals=1),
    }  # fmt: skip
    if "ppl_ratio_to_full" in result:
        cells["ratio"] = _number(result["ppl_ratio_to_full"], 6)
    if "kld_mean" in result:
        cells |= {"KLD mean": _number(result["kld_mean"], 8, decimals=5), "KLD 99%": _number(result["kld_p99"], 7)}
        cells["same top"] = f"{result['same_top_p']:.2%}"
    return cells


def _number(value: float, width: int, decimals: int = 4) -> str:
    """With fewer decimals where it would be wider, and with none as wide as it must be."""
    texts = (f"{value:.{n}f}" for n in range(decimals, -1, -1))
    return next((text for text in texts if len(text) <= width), f"{value:.0f}")
