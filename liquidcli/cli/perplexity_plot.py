"""The curve of `liquid perplexity` as a picture: what is paid, over the share of layers run. Needs matplotlib.

Knows results as JSON has them. Measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import atomic_output, output_target

Result = dict[str, Any]
_PANELS = (
    ("ppl_ratio_to_full", "perplexity over full depth"),
    ("kld_mean", "KL divergence, nats per token"),
    ("tokens_per_second", "tokens per second"),
)


def check_plot(path: Path, n_depths: int) -> None:
    """Before hours are spent: matplotlib is there, the file can be written, and there is a curve to draw."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'liquid-depth[plot]'")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: a file name that ends in .png was expected")
    if n_depths < 2:
        raise UsageError("--plot draws several depths", hint="for example --depth full,95%,90%,80%,70%")
    output_target(path)


def write_plot(path: Path, results: list[Result], title: str) -> None:
    """One panel for each figure that the results have, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(name, label) for name, label in _PANELS if all(result.get(name) is not None for result in results)]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, label) in enumerate(panels):
        _draw(figure.add_subplot(1, len(panels), i + 1), results, name, label)
    figure.suptitle(title, fontsize=10)
    with atomic_output(path) as part:
        figure.savefig(part, format="png", dpi=150)


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
