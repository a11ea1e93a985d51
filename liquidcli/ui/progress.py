"""Progress bars on stderr.

Knows how to draw `done of total` for bytes and for things that are counted. Whether to draw is decided by the console.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from .stream import sanitize


class Silent:
    """A bar nobody sees."""

    def update(self, done: int, total: int | None = None, what: str | None = None) -> None:
        pass


class Bar:
    """A bar somebody sees; `update` takes absolute numbers, so it fits any `progress` callback."""

    def __init__(self, progress, task) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, total: int | None = None, what: str | None = None) -> None:
        fields: dict[str, object] = {"total": total} if total is not None else {}
        if what is not None:
            fields["description"] = sanitize(what)
        self._progress.update(self._task, completed=done, **fields)


def _columns(unit: str) -> list:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    name = TextColumn("{task.description}", markup=False, table_column=Column(max_width=32, no_wrap=True))
    if unit == "bytes":
        return [name, BarColumn(16), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    return [name, BarColumn(16), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn()]


@contextlib.contextmanager
def bar(what: str, total: int | None, unit: str, *, color: bool) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr, color_system="auto" if color else None)
    with Progress(*_columns(unit), console=console, transient=True, refresh_per_second=8) as progress:
        yield Bar(progress, progress.add_task(sanitize(what), total=total))
