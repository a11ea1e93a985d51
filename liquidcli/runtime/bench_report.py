"""Bench results as records with llama-bench's field names, and as Markdown, CSV and JSON lines in its layouts.

Knows names and formats. Times nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..amounts import count_text
from .bench import Result
from .kv_share import context_that_saves
from .machine import memory_need

if TYPE_CHECKING:
    from .engine import Engine

FORMATS = ("md", "json", "jsonl", "csv")
_FIXED = {  # what llama-bench lets a person change and this program does not
    "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0,
    "no_kv_offload": False, "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none",
    "load_mode": "auto", "lazy_mode": "auto", "embeddings": False, "no_op_offload": 0, "no_host": False, "repack": True,
    "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip


def record(engine: Engine, result: Result, settings: dict[str, Any], fed: str) -> dict[str, Any]:
    """One result; `settings` are those of Engine.load, `fed` says what the model was fed."""
    from ..llama.context import FLASH_ATTN
    from .engine import gpu_layers

    test, info = result.test, engine.info
    need = memory_need(
        info.metadata, 0, n_ctx=test.n_ctx, n_ubatch=settings["n_ubatch"],
        type_k=settings["type_k"], type_v=settings["type_v"],
    )  # fmt: skip
    kv_bytes = need.kv_bytes if result.kv_bytes is None else result.kv_bytes
    return {
        **library_facts(),
        "model_filename": str(info.path),
        **model_facts(engine),
        "n_batch": settings["n_batch"],
        "n_ubatch": settings["n_ubatch"],
        "n_threads": info.n_threads,
        "type_k": settings["type_k"],
        "type_v": settings["type_v"],
        "n_gpu_layers": gpu_layers(settings["n_gpu_layers"]),
        "flash_attn": FLASH_ATTN[settings["flash_attn"]],
        **_FIXED,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        **result.figures(),
        "depth_mode": str(result.policy),
        "executed_fraction": result.stats.executed_fraction,
        "layers_run_mean": result.stats.layers_run_mean,
        "peak_rss_bytes": result.peak_rss_bytes,
        "kv_bytes": kv_bytes,
        **_saving(info.kv_policy, test.n_ctx, kv_bytes, need.kv_bytes, result.peak_rss_bytes),
        "fed": fed,
    }


def _saving(kv_policy: str, n_tokens: int, kv_bytes: int, full_bytes: int, peak_rss_bytes: int) -> dict[str, Any]:
    """Where skipped layers drop K and V: the context from which on the whole process needs 40 % less (None: never)."""
    if kv_policy != "drop" or n_tokens == 0:
        return {}
    other_bytes = max(0, peak_rss_bytes - kv_bytes)  # weights, what computing takes, the program
    return {
        "kv_bytes_full": full_bytes,
        "n_ctx_saving_40": context_that_saves(other_bytes, full_bytes / n_tokens, kv_bytes / n_tokens),
    }


def library_facts() -> dict[str, Any]:
    from ..llama import about, library

    devices = about.devices()
    backends = list(dict.fromkeys(device.backend for device in devices if device.backend != "CPU"))
    return {
        "build_commit": library.build_stamp(),
        "build_number": 0,
        "cpu_info": ", ".join(device.description for device in devices if device.kind in ("cpu", "accel")),
        "gpu_info": ", ".join(device.description for device in devices if device.kind in ("gpu", "igpu")),
        "backends": ",".join(backends) or "CPU",
    }


def model_facts(engine: Engine) -> dict[str, Any]:
    from ..llama.about import model_type

    model = engine.model
    kind = model_type(model).replace("?B", count_text(model.n_params))  # a shape llama.cpp has no size class for
    return {"model_type": kind, "model_size": model.size_bytes, "model_n_params": model.n_params}


def as_csv(records: Sequence[dict[str, Any]]) -> str:
    """A header and one quoted line each, without the samples, as llama-bench writes them."""
    plain = [{k: v for k, v in row.items() if not k.startswith("samples_")} for row in records]
    text = io.StringIO()
    text.write(",".join(plain[0]) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([int(v) if isinstance(v, bool) else v for v in row.values()] for row in plain)
    return text.getvalue().rstrip("\n")


def as_jsonl(records: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(row) for row in records)


def as_markdown(records: Sequence[dict[str, Any]]) -> str:
    """llama-bench's table; depth columns where a depth was chosen or layers were skipped."""
    columns = [*_COLUMNS, *(_GPU_COLUMNS if records[0]["backends"] != "CPU" else ())]
    columns += [column for column in _VARYING if len({row[column[0]] for row in records}) > 1]
    if any(row["depth_mode"] != "auto" or row["executed_fraction"] < 1 for row in records):
        columns += _DEPTH_COLUMNS
    columns += _LAST_COLUMNS
    cells = [[str(value(row)) for _, _, value in columns] for row in records]
    return _markdown([(title, right) for title, right, _ in columns], cells)


def savings(records: Sequence[dict[str, Any]]) -> list[str]:
    """For each depth setting that drops K and V, of its longest test: from which context on that tells."""
    longest: dict[str, dict[str, Any]] = {}
    for row in records:
        known = longest.get(row["depth_mode"])
        if "kv_bytes_full" in row and row["executed_fraction"] < 1 and (not known or _tokens(row) > _tokens(known)):
            longest[row["depth_mode"]] = row
    return [_saving_line(row) for row in longest.values()]


def _tokens(row: dict[str, Any]) -> int:
    return row["n_prompt"] + row["n_gen"] + row["n_depth"]


def _saving_line(row: dict[str, Any]) -> str:
    kept, full = (row[name] / _tokens(row) / 1024 for name in ("kv_bytes", "kv_bytes_full"))
    other = (row["peak_rss_bytes"] - row["kv_bytes"]) / 2**20
    start = row["n_ctx_saving_40"]
    told = "never saves 40 %" if start is None else f"saves 40 % from a context of {start} tokens on"
    return (
        f"depth {row['depth_mode']}: the whole process {told} ({kept:.1f} KiB of K and V a token, {full:.1f} at full "
        f"depth, {row['executed_fraction']:.0%} of the layers run; {other:.0f} MiB of weights and all else stay)"
    )


def _markdown(heads: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, (head, _) in enumerate(heads)]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, heads, strict=True)
        return "| " + " | ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, (_, right) in pairs) + " |"

    rule = [("-" * (w - 1) + ":") if right else "-" * w for w, (_, right) in zip(widths, heads, strict=True)]
    return "\n".join([line([head for head, _ in heads]), line(rule), *map(line, rows)])


def _size(row: dict[str, Any]) -> str:
    size = row["model_size"]
    return f"{size / 2**20:.2f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _params(row: dict[str, Any]) -> str:
    n = row["model_n_params"]
    return f"{n / 1e6:.2f} M" if n < 1e9 else f"{n / 1e9:.2f} B"


def _test(row: dict[str, Any]) -> str:
    from .bench import Test

    return Test(row["n_prompt"], row["n_gen"], row["n_depth"]).label


_COLUMNS = (  # title, aligned right, cell
    ("model", False, lambda row: row["model_type"]),
    ("size", True, _size),
    ("params", True, _params),
    ("backend", False, lambda row: row["backends"]),
    ("threads", True, lambda row: row["n_threads"]),
)
_GPU_COLUMNS = (("ngl", True, lambda row: row["n_gpu_layers"]),)
_VARYING = tuple(
    (name, True, lambda row, name=name: row[name]) for name in ("n_batch", "n_ubatch", "type_k", "type_v", "flash_attn")
)
_DEPTH_COLUMNS = (
    ("depth", False, lambda row: row["depth_mode"]),
    ("run", True, lambda row: f"{row['executed_fraction']:.1%}"),
)
_LAST_COLUMNS = (
    ("test", True, _test),
    ("t/s", True, lambda row: f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"),
    ("K, V", True, lambda row: f"{row['kv_bytes'] / 2**20:.1f} MiB"),
    ("peak RSS", True, lambda row: f"{row['peak_rss_bytes'] / 2**20:.0f} MiB"),
)
