"""A person at a terminal: types, pastes, makes the window smaller, and waits for what must appear."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from tests.command import Liquid


class Terminal:
    """`liquid chat` on a terminal of 80 columns; `see` waits for what must appear."""

    def __init__(self, liquid: Liquid, *args: object, **env: str) -> None:
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = liquid.environment(TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1", **env)
        self.process = subprocess.Popen(
            liquid.command(*args), env=environment, stdin=side, stdout=side, stderr=side, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(side)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def paste(self, text: str) -> None:
        """As a terminal hands over what was pasted: between two marks, lines ended by a carriage return."""
        self.type(f"\x1b[200~{text.replace(chr(10), chr(13))}\x1b[201~")

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def see(self, pattern: str) -> str:
        """Everything up to the first match, which is taken away with what came before it."""
        deadline = time.monotonic() + 90
        while not (match := re.search(pattern, self.shown, re.DOTALL)):
            assert time.monotonic() < deadline, f"{pattern!r} did not appear in {self.shown!r}"
            if select.select([self._main], [], [], 0.2)[0]:
                self.shown += os.read(self._main, 65536).decode("utf-8", "replace")
        before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return before

    def end(self) -> int:
        code = self.process.wait(60)
        os.close(self._main)
        return code
