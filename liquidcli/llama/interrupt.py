"""Ctrl-C, or a request to leave, while the library computes: it is noted, the work stops at the next safe point.

Knows signals. Outside of `with ctrl_c:` Python's own rules hold.
"""

from __future__ import annotations

import contextlib
import signal
import sys
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
        self._exit_code: int | None = None  # to leave with once the library has returned

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
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with self:
            before, self.in_library = self.in_library, True
            try:
                yield
            finally:
                self.in_library = before
                if not before:
                    self._leave_as_noted()

    def leave(self, exit_code: int) -> None:
        """End the process, for a signal handler: at once, or when the call of the library is over."""
        if not self.in_library:
            sys.exit(exit_code)
        self.pressed, self._exit_code = True, exit_code

    def _leave_as_noted(self) -> None:
        code, self._exit_code = self._exit_code, None
        if code is not None:
            sys.exit(code)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed and not self.in_library:
            raise KeyboardInterrupt
        self.pressed = True


ctrl_c = CtrlC()
