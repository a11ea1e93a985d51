#!/usr/bin/env python3
"""What does a long context cost when layers are skipped? Memory and single-token speed, full depth beside skipping.

    python benchmarks/memory.py --shape smollm2-135m --context 4096 --context 16384 --skip-rate 0.5

Each gate skips a token with the given probability, from a table of decisions. Every way of computing has a process of
its own: it loads, fills the context with random tokens and then computes single ones that see all of it. It is filled
in sequences of 2,048 tokens that do not see each other, which then become one: as many keys and values, sooner. Memory
is the peak of the resident size above that of the idle process, which has loaded the model; K, V are the bytes in use.

Knows processes and figures. `cases.py` and `program.py` make the models.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cases import gated_layers
from options import add_models, check_models, parser_of
from program import Models, report
from shapes import Gates

from liquidcli.errors import LiquidError, UsageError

if TYPE_CHECKING:
    from liquidcli.runtime.engine import Engine

_COLUMNS = (
    "context", ">run", ">K, V MiB", ">of full", ">peak MiB", ">whole MiB", ">of full", ">whole of full", ">ms/token",
    ">full / skip",
)  # fmt: skip
_N_SINGLE = 16
_N_POS = 4096  # positions in the table of decisions; it repeats
_N_PIECE = 2048  # tokens of a sequence


def in_child(path: Path, n_context: int, rate: float, n_threads: int | None) -> dict[str, Any]:
    """Fill the context, then single tokens; rate 0 is full depth."""
    from liquidcli.llama import depth
    from liquidcli.runtime.bench import peak_rss_bytes, reset_peak_rss
    from liquidcli.runtime.engine import Engine

    threading.Thread(target=_end_with_parent, daemon=True).start()
    n_ctx, n_seq = n_context + _N_SINGLE + 1, -(-n_context // _N_PIECE)
    with Engine.load(path, n_ctx=n_ctx, n_threads=n_threads, n_batch=512, n_seq=n_seq) as engine:
        if rate:
            rows = (_N_POS, len(engine.info.gates))
            depth.set_forced(engine.context.pointer, np.random.default_rng(11).random((1, *rows)) >= rate)
            depth.set_depth(engine.context.pointer, depth.Mode.FORCED)
        else:
            depth.set_depth(engine.context.pointer, depth.Mode.FULL)
        tokens = np.random.default_rng(3).integers(3, engine.info.n_vocab, n_context + _N_SINGLE + 1, np.int32)
        engine.decode(tokens[:1], logits="last")
        reset_peak_rss()
        idle = peak_rss_bytes()
        _fill(engine, tokens[:n_context])
        times = []
        for i in range(n_context, n_context + _N_SINGLE):
            began = time.perf_counter_ns()
            engine.decode(tokens[i : i + 1], logits="last")
            times.append((time.perf_counter_ns() - began) / 1e6)
        return {
            "executed_fraction": engine.depth_stats().executed_fraction,
            "kv_bytes": engine.kv_bytes(),
            "idle_bytes": idle,
            "peak_bytes": peak_rss_bytes(),
            "ms_per_token": float(np.median(times)),
        }


def _fill(engine: Engine, tokens: np.ndarray) -> None:
    """Sequence 0 ends up with all tokens; its first one is there."""
    pos = np.arange(len(tokens), dtype=np.int32)
    for seq, start in enumerate(range(0, len(tokens), _N_PIECE)):
        piece = slice(max(start, 1), start + _N_PIECE)
        engine.decode(tokens[piece], pos[piece], np.full(len(pos[piece]), seq, np.int32), logits="none")
        if seq:
            engine.seq_cp(seq, 0)
            engine.seq_rm(seq)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def measure(path: Path, n_context: int, rate: float, n_threads: int | None) -> dict[str, Any]:
    """`in_child` in a process that has computed nothing yet."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(in_child, path, n_context, rate, n_threads).result()
        except BrokenProcessPool:
            raise LiquidError("the measuring process died", hint="a shorter --context needs less memory") from None


def compare(path: Path, n_context: int, rate: float, n_threads: int | None) -> dict[str, Any]:
    """Full depth and skipping, one after the other."""
    full, skip = (measure(path, n_context, share, n_threads) for share in (0.0, rate))
    used = {name: found["peak_bytes"] - found["idle_bytes"] for name, found in (("full", full), ("skip", skip))}
    return {
        "context": n_context,
        "skip_rate": rate,
        "full": full,
        "skip": skip,
        "executed_fraction": skip["executed_fraction"],
        "kv_over_full": skip["kv_bytes"] / full["kv_bytes"],
        "peak_over_full": used["skip"] / used["full"],
        "process_over_full": skip["peak_bytes"] / full["peak_bytes"],
        "speedup": full["ms_per_token"] / skip["ms_per_token"],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "memory.py")
    add_models(parser, shape="smollm2-135m", gated="all", kv_policy="drop")
    parser.add_argument("--context", action="append", type=int, metavar="N", help="tokens in memory; repeat")
    parser.add_argument("--skip-rate", type=float, default=0.5, metavar="P", help="share of tokens each gate skips")
    options = parser.parse_args(arguments)
    check_models(options, [options.skip_rate])
    if any(n < 2 for n in options.context or ()):
        raise UsageError("--context is at least 2")
    return options


def _row(figures: dict[str, Any]) -> list[str]:
    full, skip = figures["full"], figures["skip"]

    def mib(name: str) -> str:
        return f"{full[name] / 2**20:.0f} -> {skip[name] / 2**20:.0f}"

    above = [(found["peak_bytes"] - found["idle_bytes"]) / 2**20 for found in (full, skip)]
    return [
        str(figures["context"]), f"{figures['executed_fraction']:.3f}", mib("kv_bytes"),
        f"{figures['kv_over_full']:.3f}", f"{above[0]:.0f} -> {above[1]:.0f}", mib("peak_bytes"),
        f"{figures['peak_over_full']:.3f}", f"{figures['process_over_full']:.3f}",
        f"{full['ms_per_token']:.1f} -> {skip['ms_per_token']:.1f}", f"{figures['speedup']:.2f}",
    ]  # fmt: skip


def _title(options: argparse.Namespace) -> str:
    return f"{options.shape} {options.type}, kv_policy {options.kv_policy}; full depth -> skipping"


def _measure(options: argparse.Namespace, models: Models) -> list[dict[str, Any]]:
    gates = Gates(gated_layers(models.shape, options.gated), adapter=options.adapter, kv_policy=options.kv_policy)
    path = models.path(gates)
    return [compare(path, n, options.skip_rate, options.threads) for n in options.context or [4096]]


def main(arguments: Sequence[str] | None = None) -> int:
    return report(lambda: parse(arguments), _measure, _title, _COLUMNS, _row)


if __name__ == "__main__":
    sys.exit(main())
