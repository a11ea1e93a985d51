"""Columns of text and numbers in words of the field: sizes, counts, ages.

Knows widths. Does not know what the columns mean.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from typing import IO

from .stream import sanitize

_WIDE_ENOUGH = 100_000  # nothing is cut in a pipe


def render(columns: Sequence[str], rows: Sequence[Sequence[object]], file: IO[str]) -> str:
    """Aligned text; long cells are folded to fit a terminal. A column named `>x` is `x`, aligned right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = file.isatty()
    bold = on_terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(Text(name.lstrip(">")), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(sanitize(str(cell)).replace("\n", " ").replace("\t", " ")) for cell in row))
    text = io.StringIO()
    width = shutil.get_terminal_size().columns if on_terminal else _WIDE_ENOUGH
    Console(
        file=text, width=width, force_terminal=bold, color_system="standard" if bold else None, highlight=False
    ).print(table)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def size_text(size_bytes: int | float) -> str:
    """98.4 MB, in powers of ten, as the hub and most shops write it."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{int(size_bytes)} B"


def count_text(count: int) -> str:
    """134.5M parameters, 8.0B parameters."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return str(count)


def age_text(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
