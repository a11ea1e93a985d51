"""What every `--plot` needs: matplotlib, a file to write, a figure, and the figure in the file.

Knows files and matplotlib, the optional extra `plot`. Does not know what is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import atomic_output, check_apart, output_target


def check_plot(path: Path, *inputs: Path | None) -> None:
    """Before hours are spent: matplotlib is there, and the file can be written, over none of the inputs."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'liquid-depth[plot]'")
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: a file name that ends in .png was expected")
    check_apart(output_target(path), *inputs, hint="name another file with --plot")


def new_figure(width: float, height: float) -> Any:
    """In inches; no window is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(path: Path, figure: Any, title: str) -> None:
    figure.suptitle(title, fontsize=10)
    with atomic_output(path) as part:
        figure.savefig(part, format="png", dpi=150)
