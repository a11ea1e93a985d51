"""What the timing programs of this folder do around their timing: make and remove models, print, end with an exit code.

Knows files and tables. Knows no timing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cases import Files, cache_folder
from shapes import SHAPES, Gates, Type

from liquidcli.errors import LiquidError
from liquidcli.ui.console import out

Figures = dict[str, Any]


class Models:
    """The model files of one shape, written on demand; at the end those it wrote are removed, unless `--keep`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.shape, self.keep = SHAPES[options.shape], options.keep
        types = Type[options.type.upper()], Type[options.head_type.upper()]
        self.files = Files(options.dir or cache_folder(), self.shape, *types, options.seed)
        self.written: list[Path] = []

    def path(self, gates: Gates | None) -> Path:
        """Without gates: the llama twin."""
        with out.progress(f"writing a random {self.shape.name}", self.files.size_bytes(gates)) as bar:
            path, is_new = self.files.make(gates, lambda done, total, what: bar.update(done, total))
        if is_new:
            self.written.append(path)
        return path

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        if self.keep:
            return
        for path in self.written:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.files.folder.rmdir()


def report(
    parse: Callable[[], argparse.Namespace],
    measure: Callable[[argparse.Namespace, Models], list[Figures]],
    title: Callable[[argparse.Namespace], str],
    columns: Sequence[str],
    row: Callable[[Figures], list[str]],
) -> int:
    """Measure and print a table, or JSON; the exit code. An error is one sentence."""

    def work() -> None:
        options = parse()
        out.configure(json=options.json)
        with Models(options) as models:
            results = measure(options, models)
        if not options.json:
            out.talk(title(options))
        show(results, columns, row)

    return code_of(work)


def code_of(work: Callable[[], None]) -> int:
    """The exit code of `work`, whose errors are a sentence each."""
    try:
        work()
    except LiquidError as error:
        out.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def show(results: Sequence[Figures], columns: Sequence[str], row: Callable[[Figures], Sequence[str]]) -> None:
    """As JSON where that was asked for, else as a table."""
    if out.json_mode:
        out.json(results)
    else:
        out.table(columns, [row(figures) for figures in results])


def leave(work: Callable[[], None]) -> NoReturn:
    """End with the exit code of `work`."""
    sys.exit(code_of(work))
