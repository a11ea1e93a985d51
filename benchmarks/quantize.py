#!/usr/bin/env python3
"""What does quantizing cost? Time and peak memory, beside llama-quantize where one is given.

    python benchmarks/quantize.py --shape llama-3.2-1b --type Q8_0 --type Q4_K_M --upstream PATH/llama-quantize

The source has random weights in F16 and is removed afterwards. Each run is a process of its own; the two programs take
turns, and the median of the rounds counts. Their files have to be the same, byte for byte.

Knows files, processes and figures. Knows no quantizer from within.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cases import Files
from program import Figures, leave, show
from shapes import SHAPES, Type
from whole_command import Run, cells, measure

from liquidcli.errors import IntegrityError
from liquidcli.files import sha256_file
from liquidcli.ui.console import out

COLUMNS = ("type", "program", ">s", ">CPU s", ">peak MB", ">s of upstream's", ">CPU of upstream's")
Runs = dict[str, list[Run]]


def write_source(folder: Path, shape: str) -> Path:
    """In a process of its own: a child's peak begins with its parent's."""
    subprocess.run([sys.executable, __file__, "--child", str(folder), shape], check=True)
    return next(folder.rglob("*.gguf"))


def commands(options: argparse.Namespace, source: Path, target: Path, kind: str) -> dict[str, list[str]]:
    words, threads = [str(source), str(target), kind], str(options.threads)
    found = {"ours": [sys.executable, "-m", "liquidcli", "quantize", *words, threads, "--quiet"]}
    if options.upstream:
        found["upstream"] = [str(options.upstream), *words, threads]
    return found


def run_all(options: argparse.Namespace, source: Path) -> dict[str, Runs]:
    """By type and program; each is told as it ends."""
    target, runs = source.parent / "out.gguf", {kind: Runs() for kind in options.type}
    hashes: dict[str, str] = {}
    for number in range(options.rounds):
        for kind, found in runs.items():
            for name, command in commands(options, source, target, kind).items():
                found.setdefault(name, []).append(run := measure(command))
                out.talk(f"round {number + 1}, {kind}, {name}: {run.seconds:.1f} s, CPU {run.cpu_seconds:.1f} s")
                if number == 0 and hashes.setdefault(kind, sha256_file(target)) != sha256_file(target):
                    raise IntegrityError(f"{kind}: the two programs wrote different files")
                target.unlink()
    return runs


def summary(kind: str, found: Runs) -> list[dict[str, Any]]:
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in found.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in runs) for name, runs in found.items()}
    return [
        {
            "type": kind, "program": name, "seconds": round(seconds[name], 2), "cpu_seconds": round(cpu[name], 2),
            "all_seconds": [round(run.seconds, 2) for run in runs], "peak_bytes": max(run.peak_bytes for run in runs),
            "over_upstream": round(seconds[name] / seconds["upstream"], 3) if "upstream" in found else None,
            "cpu_over_upstream": round(cpu[name] / cpu["upstream"], 3) if "upstream" in found else None,
        }
        for name, runs in found.items()
    ]  # fmt: skip


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    add("--type", action="append", help="(default: Q4_K_M)")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=3)
    add("--upstream", type=Path, help="the program llama-quantize")
    add("--dir", type=Path, help="where everything is written (default: the system's temporary folder)")
    add("--json", action="store_true")
    options = parser.parse_args(args)
    options.type = options.type or ["Q4_K_M"]
    return options


def main(args: list[str]) -> None:
    options = parse(args)
    out.configure(json=options.json)
    with tempfile.TemporaryDirectory(dir=options.dir) as home:
        source = write_source(Path(home), options.shape)
        out.talk(f"{options.shape}: {source.stat().st_size / 1e9:.1f} GB F16")
        runs = run_all(options, source)
    found = [one for kind, by_name in runs.items() for one in summary(kind, by_name)]
    show(found, COLUMNS, row)


def row(one: Figures) -> list[str]:
    ratios = [f"{one[key]:.2f}" if one[key] else "" for key in ("over_upstream", "cpu_over_upstream")]
    return [one["type"], one["program"], *cells(one), *ratios]


def child(folder: Path, shape: str) -> None:
    Files(folder, SHAPES[shape], Type.F16, Type.F16, 1).make(None, lambda *_: None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        leave(lambda: child(Path(sys.argv[2]), sys.argv[3]))
    leave(lambda: main(sys.argv[1:]))
