"""An answer on its way to stdout: raw in a pipe; on a terminal wrapped, and its Markdown drawn.

Knows which of these is wanted. Text is sanitized before anything else sees it.
"""

from __future__ import annotations

import shutil
import sys

from .console import is_terminal, out, wants_color
from .markdown import MARKS, Markdown, painted
from .stream import Sanitizer
from .wrap import WordWrap


class AnswerView:
    """One answer: `feed` shows what can be shown of a piece, `end` the rest."""

    def __init__(self, *, markdown: bool = True, wordwrap: bool = True) -> None:
        terminal = is_terminal(sys.stdout)
        self._safe = Sanitizer()
        self._markdown = Markdown() if markdown and terminal and wants_color(sys.stdout) else None
        self._wrap = WordWrap(shutil.get_terminal_size().columns) if wordwrap and terminal else None
        self._last = "\n"

    def feed(self, text: str) -> None:
        text = self._safe.feed(text)
        if text:
            self._last = text[-1]
        if self._wrap:
            self._wrap.resize(shutil.get_terminal_size().columns)
        if self._markdown:
            text = self._markdown.feed(text)
        self._show(self._wrap.feed(text) if self._wrap else text)

    def end(self) -> None:
        """What was held back, and the end of the line."""
        text = self._markdown.end() if self._markdown else ""
        if self._wrap:
            text = self._wrap.feed(text) + self._wrap.end()
        self._show(text + ("" if self._last == "\n" else "\n"))

    def _show(self, text: str) -> None:
        """Marks are ours, and the only way to a terminal code."""
        out.painted([painted(part) if MARKS.fullmatch(part) else part for part in MARKS.split(text)])
