"""Several files of a model side by side: size, quality against a base, speed and memory.

Knows how to bring the measurements of `perplexity` and `bench` into one row per file. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..gguf_file import open_gguf
from .depth import DepthPolicy

_QUALITY = ("ppl", "ppl_error", "ppl_ratio", "kld_mean", "kld_error", "kld_p99", "same_top_p")
# column of a Markdown table -> key, and how its value is written
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("name", str),
    "type": ("type", str),
    "size, MB": ("size_bytes", lambda n: f"{n / 1e6:.1f}"),
    "bits/weight": ("bits_per_weight", "{:.2f}".format),
    "PPL": ("ppl", "{:.4f}".format),
    "±": ("ppl_error", "{:.4f}".format),
    "KLD": ("kld_mean", "{:.5f}".format),
    "KLD 99 %": ("kld_p99", "{:.5f}".format),
    "same top-1, %": ("same_top_p", lambda share: f"{100 * share:.2f}"),
    "prompt, tok/s": ("prompt_ts", "{:.1f}".format),
    "decode, tok/s": ("decode_ts", "{:.1f}".format),
    "peak memory, MB": ("peak_rss_bytes", lambda n: f"{n / 1e6:.0f}"),
}


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
    settings: dict[str, Any] = field(default_factory=dict)  # of Engine.load


def compare(paths: Sequence[Path], wanted: Comparison, progress: Callable[[str], None] | None = None) -> Iterator[dict]:
    """One row per file, as it is done. A file that is the base itself has no divergence."""
    for path in paths:
        row = describe(path)
        if progress:
            progress(f"{row['name']}: quality")
        row |= quality(path, wanted)
        if wanted.n_prompt or wanted.n_gen:
            if progress:
                progress(f"{row['name']}: speed")
            row |= speed(path, wanted)
        yield row


def describe(path: Path) -> dict[str, Any]:
    with open_gguf(path) as f:
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

    base = wanted.base if wanted.base and not path.samefile(wanted.base) else None
    run = measure(
        path, wanted.text, [wanted.policy], wanted.n_ctx, wanted.n_chunks, base_path=base, **wanted.settings
    )[0]  # fmt: skip
    result = run.as_json()
    return {**{name: result.get(name) for name in _QUALITY}, "n_chunks": run.n_done, "depth": result["depth"]}


def speed(path: Path, wanted: Comparison) -> dict[str, Any]:
    """Of the text itself, so that gates decide as they do in use."""
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


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Columns that no row has a value for are left out."""
    shown = {title: how for title, how in COLUMNS.items() if any(row.get(how[0]) is not None for row in rows)}
    cells = [[_cell(row.get(key), write) for key, write in shown.values()] for row in rows]
    marks = ["---" if key in ("name", "type") else "---:" for key, _ in shown.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(shown), marks, *cells])


def _cell(value: Any, write: Callable[[Any], str]) -> str:
    return "-" if value is None else write(value)
