"""Columns of text, aligned.

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
