#!/usr/bin/env python3
"""How deep do ordinary prompts run? Fifty questions through `liquid run --json`, and what the gates decided in them.

    python benchmarks/prompts.py                # the default model
    python benchmarks/prompts.py -m model.gguf --depth full --answers answers.txt

Prints the mean executed_fraction over the prompts (prompt and answer tokens alike), and per gate the mean, the spread
and the share of runs of w. A gate that skips while its w never varies would be a constant in disguise: it is named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from liquidcli.hub.resolve import resolve_model
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine

PROMPTS = Path(__file__).with_name("prompts.txt")


def ask(options: argparse.Namespace, prompt: str) -> dict:
    """One run of the command line, as a person types it."""
    words = [sys.executable, "-m", "liquidcli", "run", "--json", "--temp", "0", "-n", str(options.n_predict)]
    words += ["--depth", options.depth, *(["-m", options.model] if options.model else []), "-p", prompt]
    done = subprocess.run(words, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return json.loads(done.stdout)


def gate_weights(model: Path, depth: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """w [tokens, n_gate] and run [tokens, n_gate] over the texts."""
    w, run = [], []
    with Engine.load(model, n_ctx=2048) as engine:
        engine.set_depth(DepthPolicy.parse(depth))
        engine.set_trace(True)
        for text in texts:
            engine.clear()
            engine.decode(engine.tokenize(text)[:1024], logits="none")
            trace = engine.trace()
            w.append(trace.w.copy())
            run.append(trace.run.copy())
    return np.concatenate(w), np.concatenate(run)


def main() -> int:
    parser = argparse.ArgumentParser(description="Executed fraction and gates over fifty prompts.")
    parser.add_argument("-m", "--model", metavar="REF")
    parser.add_argument("--depth", default="auto")
    parser.add_argument("-n", "--n-predict", type=int, default=96)
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write prompts and answers there")
    options = parser.parse_args()

    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    results = [ask(options, prompt) for prompt in prompts]
    fractions = [result["depth"]["executed_fraction"] for result in results]
    quartiles = statistics.quantiles(fractions, n=4)
    print(f"{len(prompts)} prompts, depth {options.depth}: executed_fraction mean {statistics.mean(fractions):.4f}, "
          f"quartiles {quartiles[0]:.4f} {quartiles[1]:.4f} {quartiles[2]:.4f}")
    if options.answers:
        pairs = [f"> {p}\n{r['text']}\n" for p, r in zip(prompts, results, strict=True)]
        options.answers.write_text("\n".join(pairs), encoding="utf-8")

    w, run = gate_weights(
        resolve_model(options.model).path,
        options.depth,
        [f"{p}\n{r['text']}" for p, r in zip(prompts, results, strict=True)],
    )
    if not w.size or np.isnan(w).all():
        print("no gate was evaluated")
        return 0
    print("gate  mean w  std w   runs")
    for gate, (mean, spread, share) in enumerate(zip(w.mean(0), w.std(0), run.mean(0), strict=True)):
        constant = "  constant" if share < 1 and spread < 1e-3 else ""
        print(f"{gate:4}  {mean:6.3f}  {spread:5.3f}  {share:5.1%}{constant}")
    return int(bool(((run.mean(0) < 1) & (w.std(0) < 1e-3)).any()))


if __name__ == "__main__":
    sys.exit(main())
