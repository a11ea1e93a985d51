"""Markdown as it streams: emphasis, headings, code and lists become styles, the marks themselves go.

`feed` returns text with style marks, control characters that sanitized text cannot hold; `painted` makes terminal codes
of them. Knows a line at a time: nothing that was shown is taken back. Tables and links stay as they are written.
"""

from __future__ import annotations

import re

BOLD, ITALIC, CODE, HEADING, QUIET, PLAIN = "\x01", "\x02", "\x03", "\x04", "\x05", "\x06"
MARKS = re.compile(f"([{BOLD}-{PLAIN}])")
_CODES = {BOLD: "1", ITALIC: "3", CODE: "36", HEADING: "1;35", QUIET: "2", PLAIN: "0"}
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_UNDECIDED = re.compile(r"\s{0,3}(#{0,6}|`{0,3}|~{0,3}|[*+-]|\d{0,3}[.)]?|>)?")  # how a line of a kind may begin
_HEADING = re.compile(r"\s{0,3}#{1,6} +")
_BULLET = re.compile(r"(\s*)[*+-] +")
_QUOTE = re.compile(r"\s{0,3}> ?")
_LONGEST_OPENER = 12


class Markdown:
    """One answer; feed it sanitized text."""

    def __init__(self) -> None:
        self._line = ""  # the beginning of a line whose kind is not known yet
        self._decided = False
        self._base = PLAIN  # style of the line
        self._fence = ""  # what closes the block we are in
        self._marks = ""  # stars and backticks that wait for what follows them
        self._bold = self._italic = self._code = False
        self._before = " "  # the character before

    def feed(self, text: str) -> str:
        return "".join(map(self._char, text))

    def end(self) -> str:
        shown = self._opened("") if not self._decided else ""
        return shown + self._emphasis("\n") + PLAIN

    def _char(self, char: str) -> str:
        if self._decided:
            return self._newline() if char == "\n" else self._inline(char)
        if char == "\n":
            return self._opened("") + self._newline()
        self._line += char
        if len(self._line) < _LONGEST_OPENER and _UNDECIDED.fullmatch(self._line):
            return ""
        return self._opened(self._line)

    def _opened(self, _line: str) -> str:
        """The beginning of a line, once its kind is known."""
        line, self._line, self._decided = self._line, "", True
        if self._fence:
            if line.strip().startswith(self._fence):
                self._fence, self._base = "", QUIET
                return QUIET + line
            self._base = CODE
            return CODE + line
        if found := _FENCE.match(line):
            self._fence, self._base = found[1], QUIET
            return QUIET + line
        for pattern, base, sign in ((_HEADING, HEADING, ""), (_QUOTE, QUIET, "│ "), (_BULLET, PLAIN, "• ")):
            if found := pattern.match(line):
                self._base = base
                indent = found[1] if pattern is _BULLET else ""
                return base + indent + sign + self._text(line[found.end() :])
        return self._text(line)

    def _text(self, line: str) -> str:
        return "".join(map(self._inline, line))

    def _newline(self) -> str:
        shown = self._emphasis("\n")
        self._decided = self._bold = self._italic = self._code = False
        self._base, self._before = (CODE if self._fence else PLAIN), " "
        return f"{shown}{PLAIN}\n"

    def _inline(self, char: str) -> str:
        if self._base == CODE or (self._base == QUIET and self._fence):
            return char
        if char in "*`" and (not self._marks or self._marks[0] == char) and not (self._code and char == "*"):
            self._marks += char
            return ""
        shown = self._emphasis(char)
        if char in "*`" and not (self._code and char == "*"):
            self._marks = char
            return shown
        self._before = char
        return shown + char

    def _emphasis(self, after: str) -> str:
        """What the marks that waited mean, now that it is known what follows them."""
        marks, self._marks = self._marks, ""
        if not marks:
            return ""
        if marks == "`":
            self._code = not self._code
        elif marks in ("*", "**", "***") and self._flanks(marks, after):
            self._bold ^= len(marks) > 1
            self._italic ^= len(marks) != 2
        else:
            self._before = marks[-1]
            return marks
        return self._style()

    def _flanks(self, marks: str, after: str) -> bool:
        """Emphasis opens before a word and closes behind one; a star among spaces is a star."""
        is_open = self._italic if marks == "*" else self._bold
        return not self._before.isspace() if is_open else not after.isspace()

    def _style(self) -> str:
        styles = ((self._bold, BOLD), (self._italic, ITALIC), (self._code, CODE))
        return self._base_marks() + "".join(mark for on, mark in styles if on)

    def _base_marks(self) -> str:
        return PLAIN if self._base == PLAIN else PLAIN + self._base


def painted(mark: str) -> str:
    """The terminal code of a style mark."""
    return f"\x1b[{_CODES[mark]}m"
