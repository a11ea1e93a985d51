"""Ctrl-C while the library computes: the key is noted, the work stops at the next safe point.

Knows signals. Outside of `with ctrl_c:` Python's own rules hold.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """`with ctrl_c:` turns the first Ctrl-C into `pressed`, a second one into KeyboardInterrupt."""

    def __init__(self) -> None:
        self.pressed = False
        self.in_library = False  # a Python exception cannot cross C
        self._depth = 0
        self._before: Any = None

    @property
    def watching(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._depth == 0:
            self.pressed = False
            self._before = signal.signal(signal.SIGINT, self._handle)
        self._depth += 1
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._depth == 0 or threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth == 0:
            signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around one call of the library that may call back: what is raised in a callback is printed and lost."""
        with self:
            before, self.in_library = self.in_library, True
            try:
                yield
            finally:
                self.in_library = before

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed and not self.in_library:
            raise KeyboardInterrupt
        self.pressed = True


ctrl_c = CtrlC()
