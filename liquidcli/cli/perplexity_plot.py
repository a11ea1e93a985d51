"""The curve of `liquid perplexity` as a picture: what is paid, over the share of layers run. Needs matplotlib.

Knows results as JSON has them. Measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from .plotting import check_plot, new_figure, write_figure

Result = dict[str, Any]
_PANELS = (
    ("ppl_ratio_to_full", "perplexity over full depth"),
    ("kld_mean", "KL divergence, nats per token"),
    ("tokens_per_second", "tokens per second"),
)


def check_curve(path: Path, n_depths: int) -> None:
    """Before hours are spent: the picture can be made, and there is a curve to draw."""
    check_plot(path)
    if n_depths < 2:
        raise UsageError("--plot draws several depths", hint="for example --depth full,95%,90%,80%,70%")


def write_plot(path: Path, results: list[Result], title: str) -> None:
    """One panel for each figure that the results have, side by side."""
    panels = [(name, label) for name, label in _PANELS if all(result.get(name) is not None for result in results)]
    figure = new_figure(4.2 * max(1, len(panels)), 3.6)
    for i, (name, label) in enumerate(panels):
        _draw(figure.add_subplot(1, len(panels), i + 1), results, name, label)
    write_figure(path, figure, title)


def _draw(axes: Any, results: list[Result], name: str, label: str) -> None:
    points = sorted((100 * result["depth"]["executed_fraction"], result[name], result) for result in results)
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", color="#1f6f8b", linewidth=1.5)
    for x, y, result in points:
        text = str(result["depth"]["mode"])
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(-5, 6), ha="right", fontsize=7)
    axes.margins(x=0.1, y=0.15)
    axes.invert_xaxis()  # full depth on the left: what is given up grows to the right
    axes.set_xlabel("layers run, % of all")
    axes.set_title(label, fontsize=9)
    axes.grid(True, linewidth=0.4, alpha=0.6)
