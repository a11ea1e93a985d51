"""Markdown that streams: the same whatever the pieces, marks gone where they mean something, text never lost."""

from __future__ import annotations

import random

import pytest

from liquidcli.ui.markdown import BOLD, CODE, HEADING, ITALIC, MARKS, PLAIN, QUIET, Markdown, painted
from liquidcli.ui.wrap import WordWrap, columns

NAMES = {BOLD: "<b>", ITALIC: "<i>", CODE: "<c>", HEADING: "<h>", QUIET: "<q>", PLAIN: "</>"}
TEXT = (
    "# Title\nSome **bold**, *slanted* and `code *x*`.\n\n- one\n* two\n```py\na = **b\n# c\n```\n"
    "2 * 3 * 4\n> said\n1. x\n"
)


def drawn(text: str, pieces: int = 1) -> str:
    view = Markdown()
    shown = "".join(view.feed(text[i : i + pieces]) for i in range(0, len(text), pieces)) + view.end()
    return "".join(NAMES.get(char, char) for char in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a **b** c", "a </><b>b</> c</>"),
        ("a *b*, c", "a </><i>b</>, c</>"),
        ("***b***", "</><b><i>b</></>"),
        ("`x*y*`", "</><c>x*y*</></>"),
        ("2 * 3 * 4", "2 * 3 * 4</>"),
        ("## A b", "<h>A b</>"),
        ("- x **y**", "</>• x </><b>y</></>"),
        ("  * x", "</>  • x</>"),
        ("> q", "<q>│ q</>"),
        ("#tag", "#tag</>"),
        ("-x", "-x</>"),
        ("**open", "</><b>open</>"),
        ("a\n", "a</>\n</>"),
        ("1. x\n12", "1. x</>\n12</>"),
        ("```\na **b**\n```\n*c*", "<q>```</>\n<c>a **b**</>\n<q>```</>\n</><i>c</></>"),
        ("snake_case and __dunder__", "snake_case and __dunder__</>"),
    ],
)
def test_what_is_drawn(text: str, shown: str) -> None:
    assert drawn(text) == shown


def test_the_pieces_do_not_matter() -> None:
    assert len({drawn(TEXT, n) for n in (1, 2, 3, 7, 1000)}) == 1


def test_no_word_is_lost_whatever_is_said() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab*`#->~ \n1.") for _ in range(60))
        view = Markdown()
        shown = MARKS.sub("", "".join(map(view.feed, text)) + view.end())
        kept = [char for char in shown if char in "ab1"]
        assert kept == [char for char in text if char in "ab1"]
        assert shown.count("\n") == text.count("\n")


def test_marks_take_no_columns_and_become_codes() -> None:
    assert columns(f"{BOLD}ab{PLAIN}") == 2
    wrap, view = WordWrap(40), Markdown()
    shown = wrap.feed(view.feed("**word** " * 20)) + wrap.end()
    assert all(columns(line) <= 40 for line in shown.split("\n"))
    assert painted(BOLD) == "\x1b[1m" and painted(PLAIN) == "\x1b[0m"
