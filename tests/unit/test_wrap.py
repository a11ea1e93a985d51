"""Streamed words move to the next line whole, and what is far from the edge does not wait."""

from __future__ import annotations

import random
import textwrap

from liquidcli.ui.wrap import WordWrap, columns

TEXT = "The river runs deeper where the stones are hard; the rest of it is light and quick and shallow as ever. " * 5


def wrapped(text: str, width: int, pieces: random.Random | None = None) -> str:
    wrap, shown, at = WordWrap(width), "", 0
    while at < len(text):
        step = pieces.randint(1, 9) if pieces else len(text)
        shown += wrap.feed(text[at : at + step])
        at += step
    return shown + wrap.end()


def test_lines_are_those_of_textwrap_however_the_text_arrives() -> None:
    expected = [line.rstrip() for line in textwrap.wrap(TEXT, 60)]
    for seed in range(5):
        lines = [line.rstrip() for line in wrapped(TEXT, 60, random.Random(seed)).splitlines()]
        assert lines == expected


def test_nothing_but_line_breaks_is_added_and_only_spaces_are_lost() -> None:
    source = "a  b\n\n    code(x)\n" + "word " * 30 + "x" * 150 + " end"
    assert wrapped(source, 40).split() == source.split()
    assert wrapped("short\n    indented\n", 40) == "short\n    indented\n"


def test_words_longer_than_a_line_are_left_to_the_terminal() -> None:
    assert wrapped("x" * 100, 40) == "x" * 100


def test_far_from_the_edge_nothing_waits() -> None:
    wrap = WordWrap(80)
    assert wrap.feed("Hel") == "Hel"
    assert wrap.feed("lo wor") == "lo wor"
    wrap.feed("x" * 60 + " ")
    assert wrap.feed("undeci") == ""
    assert wrap.feed("ded ") == "undecided "


def test_wide_and_combining_characters_take_their_columns() -> None:
    assert (columns("日本"), columns("e\u0301"), columns("abc")) == (4, 1, 3)
    lines = wrapped("日本語 " * 20, 40).splitlines()
    assert max(columns(line.rstrip()) for line in lines) <= 40
