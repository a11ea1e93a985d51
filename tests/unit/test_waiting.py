"""What takes long says so on a terminal, and leaves nothing behind."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

import pytest

from liquidcli.ui import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def slow(seconds: float, fails: bool = False) -> Iterator[int]:
    time.sleep(seconds)
    if fails:
        raise ValueError("no")
    yield 1
    time.sleep(seconds)
    yield 2


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Set within a test: capturing puts its own streams in place before each."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.05)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_the_word_stands_until_the_first_item_and_no_longer(monkeypatch) -> None:
    shown = terminal(monkeypatch)
    items = waiting.said_until_first(slow(0.3), lambda: "reading ...")
    assert next(items) == 1 and shown.getvalue() == "reading ...\r\x1b[K"
    assert list(items) == [2] and shown.getvalue().count("reading") == 1


def test_what_is_quick_piped_or_failing_leaves_nothing(monkeypatch) -> None:
    shown = terminal(monkeypatch)
    assert list(waiting.said_until_first(slow(0), lambda: "reading ...")) == [1, 2] and shown.getvalue() == ""
    with pytest.raises(ValueError, match="no"):
        list(waiting.said_until_first(slow(0.2, fails=True), lambda: "reading ..."))
    assert shown.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(waiting.said_until_first(slow(0.1), lambda: "reading ...")) == [1, 2] and sys.stderr.getvalue() == ""


def test_the_word_follows_what_it_tells_of(monkeypatch) -> None:
    shown, shares = terminal(monkeypatch), iter([0, 50])
    said = [0]
    items = waiting.said_until_first(slow(0.6), lambda: f"reading ... {said.append(next(shares, 50)) or said[-1]}%")
    assert next(items) == 1
    assert shown.getvalue() == "reading ... 0%\r\x1b[Kreading ... 50%\r\x1b[K", "the same is not written twice"
