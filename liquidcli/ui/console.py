"""The one way out: data on stdout, talk on stderr, in human, JSON or quiet mode.

Everything that goes through here is freed of control characters. Rich is imported only where something is drawn, and
only in this package. Knows nothing of models or of the words of a command.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from ..errors import LiquidError
from .stream import UNSAFE, sanitize
from .wrap import WordWrap

EXIT_BROKEN_PIPE = 141


class Out:
    """What verbs talk to. `json_mode` and `quiet` are set once, by `configure`."""

    def __init__(self) -> None:
        self.json_mode = False
        self.quiet = False

    def configure(self, *, json: bool | None = None, quiet: bool | None = None) -> None:
        self.json_mode = self.json_mode if json is None else json
        self.quiet = self.quiet if quiet is None else quiet

    def data(self, text: str) -> None:
        """One line (or several) of result."""
        self._write(sys.stdout, sanitize(text) + "\n")

    def json(self, value: Any) -> None:
        """One JSON document; dangerous characters are written as \\uXXXX, NaN and infinity as null."""
        text = json.dumps(_plain(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
        self._write(sys.stdout, UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")

    def painted(self, parts: Sequence[str]) -> None:
        """Pieces of text, every second one a terminal code of our own making; the others are sanitized."""
        self._write(sys.stdout, "".join(part if i % 2 else sanitize(part) for i, part in enumerate(parts)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Aligned columns; a name that begins with `>` is aligned right. Fits a terminal, is never cut in a pipe."""
        from .tables import render

        self._write(sys.stdout, render(columns, rows, sys.stdout))

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, one a line, values aligned."""
        width = max((len(name) for name, _ in pairs), default=0)
        self.data("\n".join(f"{name:<{width}}  {one_line(str(value))}" for name, value in pairs))

    def talk(self, text: str) -> None:
        if not self.quiet:
            self._write(sys.stderr, _folded(sanitize(text), sys.stderr) + "\n")

    def warn(self, text: str) -> None:
        if not self.quiet:
            self._say("warning:", "33", sanitize(text))

    def error(self, error: LiquidError) -> None:
        self._say("error:", "1;31", one_line(error.message))
        if error.hint:
            self._say("hint:", "36", one_line(error.hint))

    def confirm(self, question: str) -> bool:
        """Ask on stderr; no terminal, no answer and anything but yes are a no."""
        if not sys.stdin.isatty():
            return False
        self._write(sys.stderr, f"{sanitize(question)} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, unit: str = "bytes") -> Iterator[Any]:
        """A bar on stderr; its value has `update(done, total=None, what=None)`. Silent in a pipe and when quiet."""
        from .progress import Silent, bar

        if self.quiet or not is_terminal(sys.stderr):
            yield Silent()
        else:
            with bar(what, total, unit, color=wants_color(sys.stderr)) as running:
                yield running

    def _say(self, word: str, code: str, text: str) -> None:
        painted = f"\x1b[{code}m{word}\x1b[0m" if wants_color(sys.stderr) else word
        self._write(sys.stderr, _folded(f"{word} {text}", sys.stderr).replace(word, painted, 1) + "\n")

    def _write(self, file: IO[str], text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except BrokenPipeError:
            hush()
            raise SystemExit(EXIT_BROKEN_PIPE) from None


def hush() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere.fileno(), file.fileno())


def is_terminal(file: IO[str]) -> bool:
    """A terminal that can move its cursor."""
    return file.isatty() and os.environ.get("TERM") != "dumb"


def wants_color(file: IO[str]) -> bool:
    return is_terminal(file) and not os.environ.get("NO_COLOR")


def one_line(text: str) -> str:
    """A message that may quote a hostile file, on one line."""
    return " ".join(sanitize(text).split())


def _folded(text: str, file: IO[str]) -> str:
    """Broken between words where a terminal would break them anywhere."""
    if not is_terminal(file):
        return text
    wrap = WordWrap(shutil.get_terminal_size().columns)
    return wrap.feed(text) + wrap.end()


def _plain(value: Any) -> Any:
    """JSON has no NaN, no bytes, no numpy numbers and no paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


out = Out()
