#!/usr/bin/env python3
"""Do prompts and parallel sequences cost what their rows need? Stock, full depth and skipping in turns, random weights.

    python benchmarks/batches.py --shape smollm2-135m --prompt 512 --skip-rate 0.25 --skip-rate 0.5
    python benchmarks/batches.py --shape llama-3.2-1b --sequences 8 --skip-rate 0.5

Every gate skips a row with the given probability, from a table of decisions; the gates themselves are computed all the
same. needed = multiplications of the rows that run, of adapter and gate of the others (and of their K and V, unless the
model drops them), and of the head, over those of full depth. Printed are medians over rounds of time(skip) /
time(full), and that ratio over needed.

Knows rounds and figures. `cases.py` and `program.py` make the models, `needed.py` counts multiplications.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cases import gated_layers
from needed import Work, work_of
from options import CLOCKS, add_models, add_rounds, check_models, check_rounds, parser_of
from program import Models, report
from shapes import Gates

from liquidcli.errors import UsageError

if TYPE_CHECKING:
    from liquidcli.runtime.engine import Engine

_COLUMNS = ("case", ">run", ">full ms", ">full/stock", ">skip/full", ">needed", ">skip/full / needed")


class Workload:
    """One prompt, or `steps` tokens of each of several sequences; `run` computes it from an empty memory."""

    def __init__(self, options: argparse.Namespace, n_vocab: int) -> None:
        self.n_seq, self.n_pos = (options.sequences, options.steps) if options.sequences else (1, options.prompt)
        rng = np.random.default_rng(3)
        self.tokens = rng.integers(3, n_vocab, (self.n_pos, self.n_seq), np.int32)
        self.is_prompt = not options.sequences

    @property
    def label(self) -> str:
        return f"prompt of {self.n_pos}" if self.is_prompt else f"{self.n_seq} sequences, {self.n_pos} tokens each"

    def run(self, engine: Engine) -> None:
        if self.is_prompt:
            engine.decode(self.tokens[:, 0], logits="last")
            return
        seq = np.arange(self.n_seq, dtype=np.int32)
        for pos in range(self.n_pos):
            engine.decode(self.tokens[pos], np.full(self.n_seq, pos, np.int32), seq, logits="all")

    def decisions(self, rate: float, n_gate: int) -> np.ndarray:  # [n_seq, n_pos, n_gate] uint8
        return (np.random.default_rng(11).random((self.n_seq, self.n_pos, n_gate)) >= rate).astype(np.uint8)


class Bench:
    """The models of one shape in memory."""

    def __init__(self, options: argparse.Namespace, models: Models) -> None:
        self.options, self.shape, self.models = options, models.shape, models
        layers = gated_layers(self.shape, options.gated)
        self.gates = Gates(layers, adapter=options.adapter, kv_policy=options.kv_policy)
        self.load = Workload(options, self.shape.n_vocab)
        self.gated = self.open(self.gates)
        self.stock = None if options.no_stock else self.open(None)

    def open(self, gates: Gates | None) -> Engine:
        from liquidcli.runtime.engine import Engine

        path = self.models.path(gates)
        n_ctx = max(512, self.load.n_seq * self.load.n_pos)
        n_threads = self.options.threads
        return Engine.load(path, n_ctx=n_ctx, n_batch=n_ctx, n_threads=n_threads, n_seq=self.load.n_seq)

    def timed(self, engine: Engine, decisions: np.ndarray | None) -> float:  # ms
        """Decisions: a table; without one, full depth."""
        from liquidcli.llama import depth

        if decisions is not None:
            depth.set_forced(engine.context.pointer, decisions)
        if engine.model.depth:
            depth.set_depth(engine.context.pointer, depth.Mode.FULL if decisions is None else depth.Mode.FORCED)
        engine.clear()
        engine.reset_stats()
        clock = CLOCKS[self.options.clock]
        began = clock()
        self.load.run(engine)
        return (clock() - began) / 1e6

    def run(self, rate: float) -> dict[str, Any]:
        table = self.load.decisions(rate, len(self.gates.layers))
        ways = {"full": (self.gated, None), "skip": (self.gated, table)}
        if self.stock:
            ways["stock"] = (self.stock, None)
        ms: dict[str, list[float]] = {name: [] for name in ways}
        executed = 1.0
        for number in range(self.options.rounds + 1):
            for name in sorted(ways, key=lambda name: (list(ways).index(name) + number) % len(ways)):
                took = self.timed(*ways[name])
                if number:
                    ms[name].append(took)
                if name == "skip":
                    executed = self.gated.depth_stats().executed_fraction
        work = work_of(self.shape, self.gates, table, outputs=1 if self.load.is_prompt else self.load.tokens.size)
        return self.figures(rate, executed, ms, work)

    def figures(self, rate: float, executed: float, ms: dict[str, list[float]], work: Work) -> dict[str, Any]:
        ratios = [skip / full for skip, full in zip(ms["skip"], ms["full"], strict=True)]
        over_stock = [full / stock for full, stock in zip(ms["full"], ms.get("stock", []), strict=False)]
        return {
            "shape": self.shape.name,
            "case": f"{self.load.label}, {rate:.0%} skipped",
            "adapter_size": self.gates.adapter,
            "gated_layers": list(self.gates.layers),
            "skip_rate": rate,
            "executed_fraction": executed,
            "full_ms": statistics.median(ms["full"]),
            "full_over_stock": statistics.median(over_stock) if over_stock else None,
            "skip_over_full": statistics.median(ratios),
            "needed": work.needed,
            "over_needed": statistics.median(ratios) / work.needed,
            "rounds": len(ratios),
            "round_ms": ms,
        }

    def close(self) -> None:
        for engine in (self.gated, self.stock):
            if engine:
                engine.close()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "batches.py")
    add_models(parser, shape="smollm2-135m", gated="all")
    add_rounds(parser, 7)
    add = parser.add_argument
    add("--prompt", type=int, default=512, metavar="N", help="tokens of a prompt")
    add("--sequences", type=int, default=0, metavar="N", help="instead: sequences that decode side by side")
    add("--steps", type=int, default=128, metavar="N", help="tokens that each sequence decodes (default: 128)")
    add("--skip-rate", action="append", type=float, metavar="P", help="share of rows that each gate skips; repeat")
    options = parser.parse_args(arguments)
    check_models(options, options.skip_rate or ())
    check_rounds(options)
    if min(options.prompt, options.steps) < 1 or options.sequences < 0:
        raise UsageError("--prompt and --steps are at least 1, --sequences at least 0")
    return options


def _row(figures: dict[str, Any]) -> list[str]:
    over_stock = figures["full_over_stock"]
    return [
        figures["case"],
        f"{figures['executed_fraction']:.3f}",
        f"{figures['full_ms']:.1f}",
        f"{over_stock:.3f}" if over_stock else "-",
        f"{figures['skip_over_full']:.3f}",
        f"{figures['needed']:.3f}",
        f"{figures['over_needed']:.3f}",
    ]


def _title(options: argparse.Namespace) -> str:
    what = f"{options.shape} {options.type}, head {options.head_type}, adapter {options.adapter}, {options.kv_policy}"
    return f"{what}; medians of {options.rounds} rounds"


def _measure(options: argparse.Namespace, models: Models) -> list[dict[str, Any]]:
    with contextlib.closing(Bench(options, models)) as bench:
        return [bench.run(rate) for rate in options.skip_rate or [0.25, 0.5]]


def main(arguments: Sequence[str] | None = None) -> int:
    return report(lambda: parse(arguments), _measure, _title, _COLUMNS, _row)


if __name__ == "__main__":
    sys.exit(main())
