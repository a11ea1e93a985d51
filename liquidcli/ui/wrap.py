"""Streamed text broken between words at the edge of a terminal.

Knows columns. Only a word near the edge waits until it is whole; everything else appears at once.
"""

from __future__ import annotations

import unicodedata

_EDGE = 16  # columns before the edge in which a word may have to move to the next line


class WordWrap:
    """`feed` returns what can be shown; `end` what was held back."""

    def __init__(self, width: int) -> None:
        self.resize(width)
        self._column = 0
        self._word = ""

    def resize(self, width: int) -> None:
        """The terminal is so wide from here on."""
        self._width = max(width, 2 * _EDGE)

    def feed(self, text: str) -> str:
        return "".join(map(self._char, text)) + self._early()

    def end(self) -> str:
        return self._placed()

    def _char(self, char: str) -> str:
        if not char.isspace():
            self._word += char
            return ""
        shown = self._placed()
        if char == "\n":
            self._column = 0
        elif self._column >= self._width:
            return shown  # a space at the edge is the line break itself
        else:
            self._column += 1
        return shown + char

    def _early(self) -> str:
        """The beginning of a word, when it is far from the edge."""
        return self._placed() if self._column + columns(self._word) < self._width - _EDGE else ""

    def _placed(self) -> str:
        word, self._word = self._word, ""
        size = columns(word)
        if self._column and self._column + size > self._width >= size:
            self._column = size
            return f"\n{word}"
        self._column = (self._column + size) % self._width if self._column + size > self._width else self._column + size
        return word


def columns(text: str) -> int:
    """Cells of a terminal that a text takes."""
    if text.isascii() and text.isprintable():
        return len(text)
    return sum(map(_cells, text))


def _cells(char: str) -> int:
    if (char < " " and char != "\t") or unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
