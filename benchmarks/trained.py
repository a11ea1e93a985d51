#!/usr/bin/env python3
"""Does a trained model save the time that its own decisions allow? Full depth and other depths in turns, on real text.

    python benchmarks/trained.py liquid.gguf --text prose.txt --depth auto --depth 80%

One prompt, and single tokens behind it, both along the text. Per round: saved = 1 - time(depth) / time(full). Of a
prompt, savable = 1 - multiplications needed / multiplications of full depth, from every row's decisions; of single
tokens, 1 - bytes read / bytes of full depth, from the shares that each gate ran. Printed are medians over the rounds.

Knows rounds and figures. `needed.py` counts multiplications, `savable.py` bytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from needed import work_of
from options import CLOCKS, add_rounds, check_rounds, parser_of
from program import code_of, show
from savable import token_bytes
from shapes import Gates, Shape

from liquidcli.errors import UsageError
from liquidcli.gguf_file import GGUFFile, open_gguf
from liquidcli.ui.console import out

if TYPE_CHECKING:
    from liquidcli.runtime.engine import Engine

_COLUMNS = ("what", ">depth", ">run", ">full ms", ">ms", ">saved", ">savable", ">saved/savable")


def shape_of(f: GGUFFile) -> Shape:
    """The sizes of a dense model whose heads are n_embd / n_head wide."""
    get = lambda key: f.metadata.get(f"{f.architecture}.{key}")  # noqa: E731
    n_vocab = f.tensors["token_embd.weight"].shape[-1]
    heads = get("attention.head_count"), get("attention.head_count_kv")
    sizes = f.block_count, get("embedding_length"), get("feed_forward_length")
    return Shape(f.path.name, *sizes, *heads, n_vocab, "output.weight" not in f.tensors)


def gates_of(f: GGUFFile) -> Gates:
    """Its gates, of one layer each."""
    get = lambda key, default=None: f.metadata.get(f"{f.architecture}.depth.{key}", default)  # noqa: E731
    spans = get("gate_span") or []
    layers = tuple(i for i, span in enumerate(spans) if span)
    if not layers or max(spans) > 1 or set(get("gate_scope", ["layer"])) - {"layer"}:
        raise UsageError(f"{f.path} needs gates, each over one whole layer")
    down = f.tensors.get(f"blk.{layers[0]}.depth_skip_down.weight")
    return Gates(layers, adapter=down.shape[0] if down else 0, kv_policy=get("kv_policy"))


@dataclass
class Part:
    """A prompt or single tokens: its batches, and what each round took and ran at each depth."""

    name: str
    batches: list[list[int]]
    savable: Callable[[np.ndarray], float]  # of decisions [n_pos, n_gate]
    ms: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, tuple[float, float]] = field(default_factory=dict)  # (executed share, savable)

    def time(self, engine: Engine, depth: str, clock: Callable[[], int]) -> None:
        began = clock()
        for batch in self.batches:
            engine.decode(batch, logits="last")
        self.ms.setdefault(depth, []).append((clock() - began) / 1e6)

    def look(self, engine: Engine, depth: str) -> None:
        engine.reset_stats()
        runs = []
        for batch in self.batches:
            engine.decode(batch, logits="last")
            runs.append(engine.trace().run.copy())
        self.found[depth] = engine.depth_stats().executed_fraction, self.savable(np.concatenate(runs))

    def figures(self, depth: str) -> dict[str, Any]:
        saved = [1 - ms / full for ms, full in zip(self.ms[depth], self.ms["full"], strict=True)]
        executed, savable = self.found[depth]
        share = statistics.median(saved) / savable if savable > 0 else None
        return {
            "what": self.name, "depth": depth, "executed_fraction": executed,
            "full_ms": statistics.median(self.ms["full"]), "ms": statistics.median(self.ms[depth]),
            "saved": statistics.median(saved), "savable": savable, "saved_over_savable": share,
            "rounds": len(saved), "round_ms": {name: self.ms[name] for name in ("full", depth)},
        }  # fmt: skip


class Bench:
    """One model and one stretch of text, in parts that are computed from an empty memory each round."""

    def __init__(self, options: argparse.Namespace) -> None:
        from liquidcli.runtime.engine import Engine

        self.options = options
        with open_gguf(options.model) as f:
            shape, gates, read = shape_of(f), gates_of(f), token_bytes(f)
        n_ctx = options.prompt + options.tokens + 1
        self.engine = Engine.load(options.model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=options.threads)
        text = self.engine.tokenize(options.text.read_text(encoding="utf-8"))
        if len(text) < n_ctx:
            raise UsageError(f"{options.text} has {len(text)} tokens, {n_ctx} are needed")
        prompt, rest = text[: options.prompt], text[options.prompt : n_ctx - 1]
        single = [rest[i : i + 1] for i in range(len(rest))]
        of_rows = lambda run: 1 - work_of(shape, gates, run[None], outputs=1).needed  # noqa: E731
        of_bytes = lambda run: read.savable(dict(zip(gates.layers, run.mean(0).tolist(), strict=True)))  # noqa: E731
        self.parts = [
            Part(f"prompt of {len(prompt)}", [prompt], of_rows),
            Part(f"{len(rest)} single tokens", single, of_bytes),
        ]

    def round(self, depth: str, clock: Callable[[], int] | None) -> None:
        """Without a clock: decisions are noted instead of times."""
        from liquidcli.runtime.depth import DepthPolicy

        engine = self.engine
        engine.set_depth(DepthPolicy.parse(depth))
        engine.clear()
        engine.set_trace(clock is None)
        for part in self.parts:
            if clock:
                part.time(engine, depth, clock)
            else:
                part.look(engine, depth)

    def run(self) -> list[dict[str, Any]]:
        depths = list(dict.fromkeys(["full", *self.options.depth]))
        for depth in self.options.depth:
            self.round(depth, None)
        for number in range(self.options.rounds + 1):
            for i in range(len(depths)):
                self.round(depths[(i + number) % len(depths)], CLOCKS[self.options.clock])
            if number == 0:
                for part in self.parts:
                    part.ms.clear()
        self.engine.close()
        return [part.figures(depth) for part in self.parts for depth in self.options.depth]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, "trained.py")
    add = parser.add_argument
    add("model", type=Path, metavar="LIQUID.gguf")
    add("--text", type=Path, required=True, metavar="FILE")
    add("--depth", action="append", metavar="DEPTH", help="auto, 80%%, tau=0.6; repeat (default: auto)")
    add("--prompt", type=int, default=512, metavar="N")
    add("--tokens", type=int, default=32, metavar="N", help="computed one at a time behind the prompt")
    add("--threads", type=int, default=None)
    add("--json", action="store_true")
    add_rounds(parser, 9, stock=False)
    options = parser.parse_args(arguments)
    options.depth = options.depth or ["auto"]
    check_rounds(options)
    if min(options.prompt, options.tokens) < 1:
        raise UsageError("--prompt and --tokens are at least 1")
    return options


def _row(one: dict[str, Any]) -> list[str]:
    share = one["saved_over_savable"]
    return [
        one["what"], one["depth"], f"{one['executed_fraction']:.3f}", f"{one['full_ms']:.1f}", f"{one['ms']:.1f}",
        f"{one['saved']:.1%}", f"{one['savable']:.1%}", f"{share:.3f}" if share is not None else "-",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    def work() -> None:
        options = parse(arguments)
        out.configure(json=options.json)
        results = Bench(options).run()
        if not options.json:
            out.talk(f"{options.model.name}; medians of {options.rounds} rounds")
        show(results, _COLUMNS, _row)

    return code_of(work)


if __name__ == "__main__":
    sys.exit(main())
