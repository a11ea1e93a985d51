"""The curve of `liquid perplexity` as a picture: what is paid, over the share of layers run. Needs matplotlib.

Knows results as JSON has them. Measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from .plotting import check_plot, new_figure, write_figure

Result = dict[str, Any]
_PANELS = {
    "ppl_ratio_to_full": "perplexity over full depth",
    "ppl": "perplexity",
    "kld_mean": "KL divergence, nats per token",
    "tokens_per_second": "tokens per second",
}


def check_curve(path: Path, n_depths: int, *inputs: Path | None) -> None:
    """Before hours are spent: the picture can be made, over none of the inputs, and there is a curve to draw."""
    check_plot(path, *inputs)
    if n_depths < 2:
        raise UsageError("--plot draws several depths", hint="for example --depth full,95%,90%,80%,70%")


def write_plot(path: Path, results: list[Result], title: str) -> None:
    """One panel for each figure that the results have, side by side."""
    names = panels(results)
    figure = new_figure(4.2 * max(1, len(names)), 3.6)
    for i, name in enumerate(names):
        _draw(figure.add_subplot(1, len(names), i + 1), results, name)
    write_figure(path, figure, title)


def panels(results: list[Result]) -> list[str]:
    """The figures that all results have; perplexity itself only where nothing is known to set it against."""
    names = [name for name in _PANELS if all(result.get(name) is not None for result in results)]
    return [name for name in names if name != "ppl" or "ppl_ratio_to_full" not in names]


def points(results: list[Result], name: str) -> list[tuple[float, float, str]]:
    """Share of layers run in percent, the figure, and which depths met there, by the share."""
    depths: dict[tuple[float, float], dict[str, None]] = {}
    for result in results:
        where = 100 * result["depth"]["executed_fraction"], result[name]
        depths.setdefault(where, {})[str(result["depth"]["mode"])] = None
    return [(x, y, ", ".join(depths[x, y])) for x, y in sorted(depths)]


def _draw(axes: Any, results: list[Result], name: str) -> None:
    drawn = points(results, name)
    axes.plot([x for x, _, _ in drawn], [y for _, y, _ in drawn], marker="o", color="#1f6f8b", linewidth=1.5)
    for x, y, text in drawn:
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(-5, 6), ha="right", fontsize=7)
    axes.margins(x=0.1, y=0.15)
    axes.invert_xaxis()  # full depth on the left: what is given up grows to the right
    axes.set_xlabel("layers run, % of all")
    axes.set_title(_PANELS[name], fontsize=9)
    axes.grid(True, linewidth=0.4, alpha=0.6)
