"""The rows of a comparison as a Markdown table.

Knows columns and units. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Write = Callable[[Any], str]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


# column -> key, and how its value is written
COLUMNS: dict[str, tuple[str, Write]] = {
    "model": ("name", str),
    "type": ("type", str),
    "size, MB": ("size_bytes", lambda n: f"{n / 1e6:.1f}"),
    "bits/weight": ("bits_per_weight", "{:.2f}".format),
    "PPL": ("ppl", "{:.4f}".format),
    "±": ("ppl_error", "{:.4f}".format),
    "KLD": ("kld_mean", "{:.5f}".format),
    "KLD 99 %": ("kld_p99", "{:.5f}".format),
    "same top-1, %": ("same_top_p", _percent),
    "same in answers, %": ("same_token_p", _percent),
    "same answers, %": ("same_answer_p", _percent),
    "prompt, tok/s": ("prompt_ts", "{:.1f}".format),
    "decode, tok/s": ("decode_ts", "{:.1f}".format),
    "peak memory, MB": ("peak_rss_bytes", lambda n: f"{n / 1e6:.0f}"),
}
_TEXTS = ("name", "type")
_BEFORE_PARALLEL = "decode, tok/s"


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Columns that no row has a value for are left out."""
    flat = [_flat(row) for row in rows]
    columns = _columns(rows)
    shown = {title: how for title, how in columns.items() if any(row.get(how[0]) is not None for row in flat)}
    cells = [[_cell(row.get(key), write) for key, write in shown.values()] for row in flat]
    marks = ["---" if key in _TEXTS else "---:" for key, _ in shown.values()]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(shown), marks, *cells])


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, Write]]:
    """With one for each number of sequences, behind that of a single one."""
    numbers = dict.fromkeys(n for row in rows for n in row.get("decode_parallel_ts", ()))
    parallel: dict[str, tuple[str, Write]] = {f"{n} at once, tok/s": (_key(n), "{:.1f}".format) for n in numbers}
    columns: dict[str, tuple[str, Write]] = {}
    for title, how in COLUMNS.items():
        columns |= {title: how} | (parallel if title == _BEFORE_PARALLEL else {})
    return columns


def _key(n: str) -> str:
    return f"decode_{n}_ts"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return row | {_key(n): value for n, value in row.get("decode_parallel_ts", {}).items()}


def _cell(value: Any, write: Write) -> str:
    return "-" if value is None else write(value)
