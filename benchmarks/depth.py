#!/usr/bin/env python3
"""Does skipping layers save the time it can save? Stock, full depth and skipping in alternation, on random models.

    python benchmarks/depth.py --shape llama-3.2-1b --skip-layers 4
    python benchmarks/depth.py --shape llama-3-8b --skip-layers 4 --skip-layers 8 --skip-layers 16 --adapter 896
    python benchmarks/depth.py --shape moe-1b --gated all --skip-layers 6 --json

It writes a `liquid` model whose gates are forced through the biases in the file, and the `llama` model of the same
weights, then decodes single tokens at short context. Per round: saved = 1 - time(skip) / time(full). From the file's
tensor table: savable = 1 - bytes(skip) / bytes(full), where skipping still reads the norm, K and V of a skipped layer,
gates, adapters and the head, all at their stored types. Printed are medians over the rounds, and saved / savable.

Knows rounds and figures. `cases.py` and `program.py` make the models, `savable.py` counts the bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from cases import Case, force_gates, gated_layers, skipped_layers
from options import CLOCKS, add_models, add_rounds, check_models, check_rounds, parser_of
from program import Models, report
from savable import TokenBytes, token_bytes
from shapes import SHAPES, Gates

from liquidcli.errors import LiquidError, UsageError
from liquidcli.gguf_file import open_gguf

if TYPE_CHECKING:
    from liquidcli.runtime.engine import Engine

_COLUMNS = (
    "case", ">run", ">stock ms", ">full ms", ">skip ms", ">full/stock", ">saved", ">savable", ">saved/savable",
)  # fmt: skip


@dataclass
class Mode:
    """One of the ways a token is computed: which loaded model, at which depth; and what each round took and ran."""

    name: str  # stock, full, skip
    engine: Engine
    depth: str
    clock: Callable[[], int]  # ns
    average: Callable[[list[float]], float]  # of the tokens of a round
    round_ms: list[float] = field(default_factory=list)
    round_executed: list[float] = field(default_factory=list)

    def run(self, tokens: np.ndarray) -> None:
        """Decode from an empty memory; the first token does not count, it brings the weights back to the caches."""
        from liquidcli.runtime.depth import DepthPolicy

        self.engine.set_depth(DepthPolicy.parse(self.depth))
        self.engine.clear()
        self.engine.decode(tokens[:1], logits="last")
        self.engine.reset_stats()
        times = []
        for i in range(1, len(tokens)):
            began = self.clock()
            self.engine.decode(tokens[i : i + 1], logits="last")
            times.append((self.clock() - began) / 1e6)
        self.round_ms.append(self.average(times))
        self.round_executed.append(self.engine.depth_stats().executed_fraction)

    def forget(self) -> None:
        self.round_ms.clear()
        self.round_executed.clear()


@dataclass(frozen=True)
class Outcome:
    """The figures of one case; lists hold one number per round."""

    case: Case
    bytes_read: TokenBytes
    executed: list[float]
    ms: dict[str, list[float]]  # mode -> ms per token

    def ratios(self, mode: str, to: str) -> list[float]:
        return [a / b for a, b in zip(self.ms[mode], self.ms[to], strict=True)]

    def as_json(self) -> dict[str, Any]:
        case, executed = self.case, statistics.fmean(self.executed)
        rates = [case.run_rate(fraction) for fraction in self.executed]
        saved = [1 - ratio for ratio in self.ratios("skip", "full")]
        savable = [self.bytes_read.savable(rate) for rate in rates]
        shares = [a / b for a, b in zip(saved, savable, strict=True) if b > 0]
        return {
            "shape": case.shape.name,
            "case": case.label,
            "gate_kind": case.gates.kind,
            "gate_rank": case.gates.rank,
            "adapter_size": case.gates.adapter,
            "gated_layers": list(case.gates.layers),
            "skipped_layers": list(case.skipped),
            "skip_rate": case.skip_rate,
            "executed_fraction": executed,
            "bytes_full": self.bytes_read.full,
            "bytes_skip": round(self.bytes_read.at(case.run_rate(executed))),
            "ms_per_token": {name: statistics.median(ms) for name, ms in self.ms.items()},
            "full_over_stock": statistics.median(self.ratios("full", "stock")) if "stock" in self.ms else None,
            "saved": statistics.median(saved),
            "savable": self.bytes_read.savable(case.run_rate(executed)),
            "saved_over_savable": statistics.median(shares) if shares else None,
            "saved_over_savable_quartiles": _quartiles(shares) if shares else None,
            "rounds": len(saved),
            "round_ms": self.ms,
        }


def _quartiles(values: list[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, (0.25, 0.75))]


def measure(case: Case, modes: list[Mode], bytes_read: TokenBytes, rounds: int, n_tokens: int) -> Outcome:
    """Run the modes in turns, a different one first in each round, after one round to warm up."""
    rng = np.random.default_rng(3)
    for number in range(rounds + 1):
        tokens = rng.integers(3, case.shape.n_vocab, n_tokens + 1, np.int32)
        for i in range(len(modes)):
            modes[(i + number) % len(modes)].run(tokens)
        if number == 0:
            for mode in modes:
                mode.forget()
    executed = next(mode.round_executed for mode in modes if mode.name == "skip")
    _check_decisions(case, statistics.fmean(executed))
    return Outcome(case, bytes_read, executed, {mode.name: mode.round_ms for mode in modes})


def _check_decisions(case: Case, executed_fraction: float) -> None:
    tolerance = 1e-9 if case.skip_rate is None else 0.1
    if abs(executed_fraction - case.expected_fraction) > tolerance:
        raise LiquidError(
            f"{executed_fraction:.4f} of the layers ran and {case.expected_fraction:.4f} were to: "
            "the gates did not follow their biases"
        )


class Bench:
    """Runs cases; the stock twin is loaded once for all of them."""

    def __init__(self, options: argparse.Namespace, models: Models) -> None:
        self.options, self.models = options, models
        self.stock = None if options.no_stock else self.open(models.path(None))

    def open(self, path: Path) -> Engine:
        from liquidcli.runtime.engine import Engine

        return Engine.load(path, n_ctx=512, n_batch=512, n_threads=self.options.threads)

    def run(self, case: Case) -> Outcome:
        path = self.models.path(case.gates)
        force_gates(path, case, self.open)
        with open_gguf(path) as f:
            bytes_read = token_bytes(f)
        with self.open(path) as engine:
            how = CLOCKS[self.options.clock], statistics.median if case.skip_rate is None else statistics.fmean
            modes = [Mode("stock", self.stock, "full", *how)] if self.stock else []
            modes += [Mode("full", engine, "full", *how), Mode("skip", engine, "auto", *how)]
            return measure(case, modes, bytes_read, self.options.rounds, self.options.tokens)

    def close(self) -> None:
        if self.stock:
            self.stock.close()


def cases_of(options: argparse.Namespace) -> Iterator[Case]:
    shape = SHAPES[options.shape]
    layers = gated_layers(shape, options.gated)
    rank = options.rank or max(4, shape.n_embd // 16)
    kind = {"kind": options.gate, "rank": rank if options.gate == "bottleneck" else 0, "kv_policy": options.kv_policy}
    gates = Gates(layers, adapter=options.adapter, scaled=options.scaled, **kind)
    for rate in options.skip_rate or ():
        yield Case(shape, gates, skip_rate=rate)
    default = [] if options.skip_rate else [str(shape.n_layer // 4)]
    for wanted in options.skip_layers or default:
        yield Case(shape, gates, skipped_layers(shape, layers, wanted))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "depth.py")
    add_models(parser, shape="llama-3.2-1b", gated="upper")
    add_rounds(parser, 15)
    add = parser.add_argument
    add("--skip-layers", action="append", metavar="N|LIST", help="layers every token skips; repeat for several cases")
    add("--skip-rate", action="append", type=float, metavar="P", help="instead: share of tokens that each gate skips")
    add("--gate", choices=("linear", "bottleneck"), default="linear")
    add("--rank", type=int, default=0, metavar="R", help="of a bottleneck gate (default: n_embd / 16)")
    add("--scaled", action="store_true", help="let the gates scale FFN and adapter, as FlexiDepth does")
    add("--tokens", type=int, default=6, help="timed per mode and round")
    options = parser.parse_args(arguments)
    check_models(options, options.skip_rate or ())
    check_rounds(options)
    if options.tokens < 1:
        raise UsageError("--tokens is at least 1")
    return options


def _row(figures: dict[str, Any]) -> list[str]:
    ms, quartiles = figures["ms_per_token"], figures["saved_over_savable_quartiles"]
    share = figures["saved_over_savable"]
    return [
        figures["case"],
        f"{figures['executed_fraction']:.3f}",
        f"{ms['stock']:.2f}" if "stock" in ms else "-",
        f"{ms['full']:.2f}",
        f"{ms['skip']:.2f}",
        f"{figures['full_over_stock']:.3f}" if figures["full_over_stock"] else "-",
        f"{figures['saved']:.1%}",
        f"{figures['savable']:.1%}",
        f"{share:.3f} ({quartiles[0]:.3f}-{quartiles[1]:.3f})" if share is not None else "-",
    ]


def _title(options: argparse.Namespace) -> str:
    what = f"{options.shape} {options.type}, head {options.head_type}, {options.gate} gates, adapter {options.adapter}"
    return f"{what}; one token at a time; medians of {options.rounds} rounds"


def _measure(options: argparse.Namespace, models: Models) -> list[dict[str, Any]]:
    cases = list(cases_of(options))
    with contextlib.closing(Bench(options, models)) as bench:
        return [bench.run(case).as_json() for case in cases]


def main(arguments: Sequence[str] | None = None) -> int:
    return report(lambda: parse(arguments), _measure, _title, _COLUMNS, _row)


if __name__ == "__main__":
    sys.exit(main())
