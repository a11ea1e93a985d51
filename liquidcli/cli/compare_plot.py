"""The rows of `liquid compare` as a picture: what bits buy in quality, what they cost in speed and memory.

Knows rows as JSON has them. Measures nothing. Needs matplotlib, the optional extra `plot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .plotting import new_figure, write_figure

_TINTS = ("#1f6f8b", "#6aa9bf", "#b3d4de", "#dbeaef")
_GREY = "#555555"


def write_plot(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Panels for which there are figures, side by side."""
    panels = [draw for wants, draw in _PANELS if any(map(wants, rows))]
    figure = new_figure(5.4 * len(panels), max(4.0, 0.55 * len(rows) + 1.2))
    for i, draw in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        draw(axes, rows)
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure, title)


def _label(row: dict[str, Any]) -> str:
    return row.get("type") or row["name"]


def _quality(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Against a base its divergence, else perplexity."""
    shown = [row for row in rows if row.get("kld_mean")]
    key, unit = ("kld_mean", "mean KL divergence from the base, nats") if shown else ("ppl", "perplexity")
    shown = shown or list(rows)
    sizes, values = [row["bits_per_weight"] for row in shown], [row[key] for row in shown]
    axes.scatter(sizes, values, color=_TINTS[0], zorder=3)
    for row, x, y in zip(shown, sizes, values, strict=True):
        axes.annotate(_label(row), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if key == "kld_mean":
        axes.set_yscale("log")
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.25, which="both")
    axes.set_xlabel("bits per weight")
    axes.set_ylabel(unit)


def _bars(axes: Any, rows: Sequence[dict[str, Any]], series: dict[str, list[float]], unit: str) -> None:
    height = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [place + (i - (len(series) - 1) / 2) * height for place in range(len(rows))]
        bars = axes.barh(places, values, height * 0.92, label=name, color=_TINTS[i % len(_TINTS)])
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=2, fontsize=7, color=_GREY)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series))


def _speed(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    numbers = dict.fromkeys(n for row in rows for n in row.get("decode_parallel_ts", ()))
    series = {"1 sequence": [row.get("decode_ts") or 0.0 for row in rows]}
    for n in numbers:
        series[f"{n} at once"] = [row.get("decode_parallel_ts", {}).get(n) or 0.0 for row in rows]
    _bars(axes, rows, series, "decoded tokens per second")


def _memory(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    _bars(axes, rows, {"": [(row.get("peak_rss_bytes") or 0) / 1e6 for row in rows]}, "peak memory, MB")


# who has figures for it, how it is drawn
_PANELS: tuple[tuple[Callable[[dict[str, Any]], Any], Callable[[Any, Sequence[dict[str, Any]]], None]], ...] = (
    (lambda row: row.get("ppl") is not None, _quality),
    (lambda row: row.get("decode_ts") is not None, _speed),
    (lambda row: row.get("peak_rss_bytes") is not None, _memory),
)
