"""Speed of prompts and generation: llama-bench's tests and field names, with several depth settings run in alternation.

Knows what a test feeds and how samples become figures. Knows nothing of terminals or formats. Gates run deep on random
tokens, so models with gates are fed real text, token by token as if the model had written it (teacher forcing); the
bundled one is Lincoln's two inaugural addresses (1861, 1865), public domain.
"""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from .depth import DepthPolicy
    from .engine import Engine

BUNDLED_TEXT = Path(__file__).with_name("bench.txt")
_RANGE = re.compile(r"^(\d+)(?:-(\d+)(?:([+*])(\d+))?)?$")  # first[-last[(+|*)step]]
_SEED = 1


@dataclass(frozen=True)
class Test:
    """What is timed: `n_prompt` tokens at once, then `n_gen` one by one, after `n_depth` tokens that are not timed."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def n_ctx(self) -> int:
        return self.n_prompt + self.n_gen + self.n_depth

    @property
    def label(self) -> str:
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass
class Result:
    """One test at one depth setting."""

    test: Test
    policy: DepthPolicy
    samples_ns: list[int] = field(default_factory=list)
    stats: Any = None
    peak_rss_bytes: int = 0
    kv_bytes: int | None = None  # in use when a sample ended; None: the library cannot tell
    test_time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def samples_ts(self) -> list[float]:
        return [1e9 * (self.test.n_prompt + self.test.n_gen) / ns for ns in self.samples_ns]

    def figures(self) -> dict[str, Any]:
        """Means and deviations, in llama-bench's names."""
        ns, ts = self.samples_ns, self.samples_ts
        return {
            "test_time": self.test_time,
            "avg_ns": int(statistics.fmean(ns)),
            "stddev_ns": int(statistics.stdev(ns)) if len(ns) > 1 else 0,
            "avg_ts": statistics.fmean(ts),
            "stddev_ts": statistics.stdev(ts) if len(ts) > 1 else 0.0,
            "samples_ns": ns,
            "samples_ts": ts,
        }


def parse_numbers(text: str, name: str) -> list[int]:
    """`128,512`, `1-4`, `0-64+16` and `128-1024*2`, as llama-bench reads them."""
    numbers: list[int] = []
    for part in text.split(","):
        match = _RANGE.match(part.strip())
        if not match:
            raise UsageError(f"{name}: {part!r} is no number and no range", hint=f"{name} 128,512 or {name} 128-1024*2")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers += _range(first, last, match[3] or "+", int(match[4] or 1), name)
    return numbers


def _range(first: int, last: int, operator: str, step: int, name: str) -> Iterator[int]:
    if last > first and (step == 0 if operator == "+" else step < 2 or first == 0):
        raise UsageError(f"{name}: the range from {first} to {last} in steps of {operator}{step} never ends")
    while first <= last:
        yield first
        first = first + step if operator == "+" else first * step


def plan_tests(
    n_prompts: Sequence[int], n_gens: Sequence[int], pairs: Sequence[tuple[int, int]], n_depths: Sequence[int]
) -> list[Test]:
    """Every test, prompts before generation, as llama-bench orders them."""
    shapes = [(n, 0) for n in n_prompts if n] + [(0, n) for n in n_gens if n] + [pair for pair in pairs if any(pair)]
    if not shapes:
        raise UsageError("there is nothing to time: -p and -n are both 0")
    return [Test(n_prompt, n_gen, n_depth) for n_depth, (n_prompt, n_gen) in itertools.product(n_depths, shapes)]


def random_tokens(n: int, n_vocab: int, bos: int | None) -> np.ndarray:  # [n] int32
    tokens = np.random.default_rng(_SEED).integers(0, n_vocab, n, np.int32)
    if bos is not None and n:
        tokens[0] = bos
    return tokens


def text_tokens(engine: Engine, text: str, n: int) -> np.ndarray:  # [n] int32
    """The text's first `n` tokens; a text too short is begun again."""
    tokens = np.asarray(engine.tokenize(text, add_special=True), np.int32)
    if not len(tokens):
        raise UsageError("the text for bench is empty")
    return np.resize(tokens, n)


def run_test(
    engine: Engine,
    test: Test,
    policies: Sequence[DepthPolicy],
    tokens: np.ndarray,
    *,
    repetitions: int = 5,
    n_batch: int = 2048,
    on_sample: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Time one test at each depth setting, in turns, so that what the machine does meanwhile hits all of them alike."""
    results = [Result(test, policy) for policy in policies]
    for result in results:
        _begin(engine, result.policy, tokens[:0], n_batch)
        _feed(engine, tokens[: test.n_prompt], n_batch)
        _generate(engine, tokens[: min(test.n_gen, 1)])
        result.peak_rss_bytes = 0
    for repetition in range(repetitions):
        for i in range(len(results)):
            result = results[(i + repetition) % len(results)]
            _sample(engine, result, tokens, n_batch)
            if on_sample:
                on_sample(result)
    return results


def _sample(engine: Engine, result: Result, tokens: np.ndarray, n_batch: int) -> None:
    test = result.test
    timed = tokens[test.n_depth : test.n_ctx]
    reset_peak_rss()
    _begin(engine, result.policy, tokens[: test.n_depth], n_batch)
    engine.reset_stats()
    began = time.perf_counter_ns()
    _feed(engine, timed[: test.n_prompt], n_batch)
    _generate(engine, timed[test.n_prompt :])
    result.samples_ns.append(time.perf_counter_ns() - began)
    stats = engine.depth_stats()
    result.stats = stats if result.stats is None else result.stats + stats
    result.peak_rss_bytes = max(result.peak_rss_bytes, peak_rss_bytes())
    result.kv_bytes = engine.kv_bytes()


def _begin(engine: Engine, policy: DepthPolicy, context: np.ndarray, n_batch: int) -> None:
    engine.set_depth(policy)
    engine.clear()
    _feed(engine, context, n_batch)


def _feed(engine: Engine, tokens: np.ndarray, n_batch: int) -> None:
    for at in range(0, len(tokens), n_batch):
        engine.decode(tokens[at : at + n_batch], logits="last")


def _generate(engine: Engine, tokens: np.ndarray) -> None:
    for i in range(len(tokens)):
        engine.decode(tokens[i : i + 1], logits="last")


def reset_peak_rss() -> None:
    """Let the system forget this process's peak; where it cannot, the peak is that of the whole run."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss_bytes() -> int:
    """Largest resident size since the last reset, mapped model file included."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
