"""Text of unknown origin on its way to a terminal: controls are removed, token pieces are decoded as they come.

Knows escape sequences and broken UTF-8, also when split over several pieces. Does not know where the text goes.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL and C1, bidi embeddings, overrides and isolates, surrogates
_UNSAFE_CHARS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
UNSAFE = re.compile(f"[{_UNSAFE_CHARS}]")
_STRING_OPENERS = "]PX^_"  # after ESC: a control string follows, up to BEL or ESC backslash
_C1_OPENERS = {"\x9b": "[", "\x9d": "]", "\x90": "P", "\x98": "X", "\x9e": "^", "\x9f": "_"}
_LONGEST_SEQUENCE = 4096


class Sanitizer:
    """Drops what could steer a terminal, whole sequences at a time; keeps its place between calls of `feed`."""

    def __init__(self) -> None:
        self._state = "text"
        self._length = 0

    def feed(self, text: str) -> str:
        if self._state == "text" and not UNSAFE.search(text):
            return text
        return "".join(char for char in text if self._keep(char))

    def _keep(self, char: str) -> bool:
        if self._state == "text":
            return self._text(char)
        self._length += 1
        if self._length > _LONGEST_SEQUENCE or char == "\n":
            self._state = "text"
            return self._text(char)
        return getattr(self, f"_{self._state}")(char)

    def _text(self, char: str) -> bool:
        if char == "\x1b" or char in _C1_OPENERS:
            self._length = 0
            self._state = "escape"
            return False if char == "\x1b" else self._escape(_C1_OPENERS[char])
        return not UNSAFE.match(char)

    def _escape(self, char: str) -> bool:
        if char == "[":
            self._state = "csi"
        elif char in _STRING_OPENERS:
            self._state = "string"
        elif char == "\x1b" or " " <= char <= "/":
            self._state = "escape"
        else:
            self._state = "text"
            return not "0" <= char <= "~" and self._text(char)
        return False

    def _csi(self, char: str) -> bool:
        if " " <= char <= "?":
            return False
        self._state = "text"
        return not "@" <= char <= "~" and self._text(char)

    def _string(self, char: str) -> bool:
        if char in "\x07\x9c":
            self._state = "text"
        elif char == "\x1b":
            self._state = "string_end"
        return False

    def _string_end(self, char: str) -> bool:
        self._state = "string"
        if char == "\\":
            self._state = "text"
            return False
        return self._string(char)


def sanitize(text: str) -> str:
    """One whole text without anything that could steer a terminal; tabs and newlines stay."""
    return Sanitizer().feed(text)
