#!/usr/bin/env python3
"""How long does a command take before its work? `liquid --help` beside a bare Typer app, `liquid run` up to the load.

    python benchmarks/startup.py --rounds 15 -m MODEL

The bare app has as many commands and the same Rich setting. `liquid run` is timed from the start of its process to the
call that loads the model, which is not made. Both with bytecode that was compiled before; the programs take turns, and
the medians of the rounds count. Without -m, the default model, which must be on this machine.

Knows processes and clocks. Knows no command from within.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from options import parser_of

from liquidcli.cli.app import VERBS
from liquidcli.errors import LiquidError
from liquidcli.ui.console import out

BARE = """
import typer
app = typer.Typer(rich_markup_mode=None)
def command(name: str, count: int = 1, verbose: bool = False):
    "Do one thing and do it well."
for i in range({n}):
    app.command(f"command{{i}}")(command)
app()
"""
UP_TO_THE_LOAD = """
import importlib.abc, importlib.util, os, sys, time
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "liquidcli.llama.model":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def watched(module):
            execute(module)
            module.Model._load = lambda *_: (os.write(1, str(time.monotonic_ns()).encode()), os._exit(0))
        spec.loader.exec_module = watched
        return spec
sys.meta_path.insert(0, Watch())
sys.argv = ["liquid", "run", "hi", *sys.argv[1:]]
from liquidcli.__main__ import main
main()
"""


def measure(options: Namespace) -> dict[str, float]:
    python, run = sys.executable, ["-m", options.model] if options.model else []
    with tempfile.TemporaryDirectory() as cache:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment = {**kept, "PYTHONPYCACHEPREFIX": cache}
        bare = lambda: _seconds([python, "-c", BARE.format(n=len(VERBS))[1:], "--help"], environment)  # noqa: E731
        ours = lambda: _seconds([python, "-m", "liquidcli", "--help"], environment)  # noqa: E731
        load = lambda: _seconds([python, "-c", UP_TO_THE_LOAD, *run], environment, told=True)  # noqa: E731
        rounds = [(bare(), ours(), load()) for _ in range(options.rounds + 1)][1:]  # the first compiles
    return {
        "bare_help_s": statistics.median(row[0] for row in rounds),
        "help_s": statistics.median(row[1] for row in rounds),
        "help_ratio": statistics.median(row[1] / row[0] for row in rounds),
        "run_before_load_s": statistics.median(row[2] for row in rounds),
        "run_before_load_best_s": min(row[2] for row in rounds),
    }


def _seconds(line: list[str], environment: dict[str, str], *, told: bool = False) -> float:
    """Of a process, from its start to its end, or to the time it tells."""
    started = time.monotonic_ns()
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    ended = time.monotonic_ns()
    if result.returncode:
        raise LiquidError(f"{' '.join(line[:3])[:80]} failed: {result.stderr.strip()[-300:]}")
    return ((int(result.stdout) if told else ended) - started) / 1e9


def main() -> int:
    parser = parser_of(__doc__ or "", "startup.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-m", "--model", default=None, metavar="REF")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = measure(options)
    except LiquidError as error:
        out.error(error)
        return error.exit_code
    if options.json:
        out.json(found)
    else:
        out.fields([(name, f"{value:.3f}") for name, value in found.items()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
