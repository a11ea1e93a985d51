"""Several files of a model side by side: size, quality against a base, answers, speed and memory.

Knows how to bring the measurements of `perplexity`, `agreement` and `bench` into one row per file. Knows nothing of
terminals, and not how its rows are shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..gguf_file import check_loadable, open_gguf
from .agreement import Answer, agreement
from .apart import in_own_process
from .depth import DepthPolicy

if TYPE_CHECKING:
    from .engine import Engine

_QUALITY = ("ppl", "ppl_error", "ppl_ratio", "kld_mean", "kld_error", "kld_p99", "same_top_p")


@dataclass(frozen=True)
class Comparison:
    """What is measured of every file; 0 prompt and decode tokens: no speed."""

    text: str
    policy: DepthPolicy
    base: Path | None
    n_ctx: int = 512
    n_chunks: int = -1
    n_prompt: int = 512
    n_gen: int = 128
    repetitions: int = 3
    n_parallel: tuple[int, ...] = ()  # sequences that decode side by side, beside the single one
    answers: tuple[Answer, ...] = ()  # of the base
    settings: dict[str, Any] = field(default_factory=dict)  # of Engine.load


def compare(paths: Iterable[Path], wanted: Comparison, progress: Callable[[str], None] | None = None) -> Iterator[dict]:
    """One row per file, as it is done; `paths` may make each as it is asked for. The base itself has no divergence."""
    for path in paths:
        row = describe(path)
        for name, measure in _parts(path, wanted).items():
            if progress:
                progress(f"{row['name']}: {name}")
            row |= measure(path, wanted)
        yield row


def _parts(path: Path, wanted: Comparison) -> dict[str, Callable[[Path, Comparison], dict[str, Any]]]:
    parts: dict[str, Callable[[Path, Comparison], dict[str, Any]]] = {"quality": quality}
    if wanted.answers and not _is_base(path, wanted):
        parts["answers"] = answers
    if wanted.n_prompt or wanted.n_gen:
        parts["speed"] = speed
    if wanted.n_gen and wanted.n_parallel:
        parts["speed of several sequences"] = parallel_speed
    return parts


def _is_base(path: Path, wanted: Comparison) -> bool:
    return wanted.base is not None and path.samefile(wanted.base)


def describe(path: Path) -> dict[str, Any]:
    with open_gguf(path) as f:
        check_loadable(f)
        n_weights = sum(info.n_elements for info in f.tensors.values())
        n_bytes = sum(info.size_bytes for info in f.tensors.values())
        return {
            "name": path.name.removesuffix(".gguf"),
            "model": str(path),
            "file_type": f.metadata.get("general.file_type"),
            "size_bytes": f.size_bytes,
            "bits_per_weight": round(8 * n_bytes / n_weights, 4),
        }


def quality(path: Path, wanted: Comparison) -> dict[str, Any]:
    from .perplexity import measure

    base = None if _is_base(path, wanted) else wanted.base
    run = measure(
        path, wanted.text, [wanted.policy], wanted.n_ctx, wanted.n_chunks, base_path=base, **wanted.settings
    )[0]  # fmt: skip
    result = run.as_json()
    return {**{name: result.get(name) for name in _QUALITY}, "n_chunks": run.n_done, "depth": result["depth"]}


def answers(path: Path, wanted: Comparison) -> dict[str, Any]:
    found = agreement(path, wanted.answers, wanted.policy, **wanted.settings)
    return {"same_token_p": found["same_token_p"], "same_answer_p": found["same_answer_p"], "answers": found}


def speed(path: Path, wanted: Comparison) -> dict[str, Any]:
    """Of the text itself, so that gates decide as they do in use; peak memory with one sequence."""
    return in_own_process(_speed, path, wanted)


def _speed(path: Path, wanted: Comparison) -> dict[str, Any]:
    from .bench import Test, run_test, text_tokens
    from .engine import Engine

    found: dict[str, Any] = {"peak_rss_bytes": 0}
    tests = {"prompt_ts": Test(wanted.n_prompt, 0), "decode_ts": Test(0, wanted.n_gen)}
    with Engine.load(path, n_ctx=max(wanted.n_prompt, wanted.n_gen), **wanted.settings) as engine:
        for name, test in tests.items():
            if not test.n_ctx:
                continue
            tokens = text_tokens(engine, wanted.text, test.n_ctx)
            result = run_test(engine, test, [wanted.policy], tokens, repetitions=wanted.repetitions)[0]
            found[name] = result.figures()["avg_ts"]
            found["peak_rss_bytes"] = max(found["peak_rss_bytes"], result.peak_rss_bytes)
    return found


def parallel_speed(path: Path, wanted: Comparison) -> dict[str, Any]:
    """Tokens per second of several sequences together, each on a part of the text of its own."""
    return in_own_process(_parallel_speed, path, wanted)


def _parallel_speed(path: Path, wanted: Comparison) -> dict[str, Any]:
    from .bench import text_tokens
    from .engine import Engine

    n_most, n_gen = max(wanted.n_parallel), wanted.n_gen
    settings = {"n_seq": n_most, "kv_unified": n_most == 1, **wanted.settings}
    with Engine.load(path, n_ctx=n_most * n_gen, n_batch=max(n_most, 32), **settings) as engine:
        engine.set_depth(wanted.policy)
        tokens = text_tokens(engine, wanted.text, n_most * n_gen).reshape(n_most, n_gen).T  # [n_gen, n_most]
        _decode_together(engine, tokens[:2])
        took = {
            n: statistics.median(_decode_together(engine, tokens[:, :n]) for _ in range(wanted.repetitions))
            for n in wanted.n_parallel
        }
    return {"decode_parallel_ts": {str(n): n * n_gen / seconds for n, seconds in took.items()}}


def _decode_together(engine: Engine, tokens: np.ndarray) -> float:  # seconds; [n_steps, n_seq]
    seq = np.arange(tokens.shape[1], dtype=np.int32)
    engine.clear()
    began = time.perf_counter()
    for pos, step in enumerate(tokens):
        engine.decode(step, np.full(len(step), pos, np.int32), seq, logits="all")
    return time.perf_counter() - began
