"""A command as a process of its own: wall time, processor time, peak memory, by the system's own account of it.

Knows processes. Knows no command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liquidcli.errors import LiquidError


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: list[str]) -> Run:
    """LiquidError with the last line it said if the command fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise LiquidError(f"{command[1]} ended with {process.returncode}: {last[-1]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def cells(figures: Mapping[str, Any]) -> list[str]:
    """Of a table: wall time, processor time, peak memory."""
    return [f"{figures['seconds']:.1f}", f"{figures['cpu_seconds']:.1f}", f"{figures['peak_bytes'] / 1e6:.0f}"]
