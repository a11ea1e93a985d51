"""Runs `liquid` as a user does: a process of its own, homes of its own, output captured or on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120
_CLEARED = ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LIQUID_DEBUG", "NO_COLOR")


@dataclass
class Liquid:
    """A machine of one's own: `home` holds both stores. `env` is added to every call."""

    home: Path
    env: Mapping[str, str]

    def command(self, *args: object) -> list[str]:
        return [sys.executable, "-m", "liquidcli", *map(str, args)]

    def environment(self, **env: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in _CLEARED}
        own = {"LIQUID_HOME": str(self.home / "liquid"), "HF_HOME": str(self.home / "hf"), "COLUMNS": "80"}
        return {**kept, **own, **self.env, **env}

    def __call__(
        self, *args: object, stdin: str = "", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*args), env=self.environment(**env), cwd=cwd or self.home, input=stdin, capture_output=True,
            text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip

    def start(self, *args: object, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*args), env=self.environment(**env), cwd=self.home, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def on_terminal(self, *args: object, **env: str) -> tuple[int, str]:
        """Exit code and everything shown on an 80-column terminal."""
        main, side = pty.openpty()
        process = subprocess.Popen(
            self.command(*args), env=self.environment(**{"TERM": "xterm-256color", **env}), cwd=self.home,
            stdin=side, stdout=side, stderr=side, close_fds=True,
        )  # fmt: skip
        os.close(side)
        shown, deadline = b"", time.monotonic() + TIMEOUT_S
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                if select.select([main], [], [], 0.1)[0]:
                    piece = os.read(main, 65536)
                    if not piece:
                        break
                    shown += piece
        os.close(main)
        return process.wait(TIMEOUT_S), shown.decode("utf-8", "replace")


def failed(result: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """One sentence on stderr, the exit code, nothing on stdout, no traceback."""
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
