"""A word on the terminal while nothing can be shown yet, gone without a trace once something can.

Knows a clock and one line of stderr. Does not know what is waited for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .console import is_terminal, out

PATIENCE_S = 1.0
_ERASE = "\r\x1b[K"
_Item = TypeVar("_Item")


def said_until_first(items: Iterable[_Item], word: Callable[[], str]) -> Iterator[_Item]:
    """The items; until the first of them is there, which may take a while, what `word` says stands on the terminal."""
    if out.quiet or not (is_terminal(sys.stderr) and is_terminal(sys.stdout)):
        yield from items
        return
    waiting = _Word(word)
    try:
        for item in items:
            waiting.end()
            yield item
    finally:
        waiting.end()


class _Word:
    def __init__(self, word: Callable[[], str]) -> None:
        self._word, self._shown, self._over = word, "", False
        self._lock = threading.Lock()
        self._wait()

    def _wait(self) -> None:
        self._timer = threading.Timer(PATIENCE_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if self._over:
                return
            if (word := self._word()) != self._shown:
                sys.stderr.write(_ERASE * bool(self._shown) + word)
                sys.stderr.flush()
                self._shown = word
            self._wait()

    def end(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            self._timer.cancel()
            if self._shown:
                sys.stderr.write(_ERASE)
                sys.stderr.flush()
