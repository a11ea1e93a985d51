"""`liquid fit`: does a model with its context fit in this machine's memory?"""

from __future__ import annotations

from typing import Any

import typer

from ..errors import MemoryFitError
from ..ui.console import out
from .options import CtxSize, Depth, Gates, Json, Quiet, Ref, TypeK, TypeV, UBatchSize


def fit(
    ref: Ref = None,
    n_ctx: CtxSize = 0,
    n_ubatch: UBatchSize = 512,
    type_k: TypeK = "f16",
    type_v: TypeV = "f16",
    depth: Depth = "auto",
    gates: Gates = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Estimate the memory a stored model needs.

    Exit code 5 if it does not fit. -c 0 means the context a chat would get. Where skipped layers drop keys and values,
    they are counted for the share of the layers that runs at --depth, as far as the model was calibrated.
    """
    from ..gguf_file import open_gguf
    from ..hub.resolve import resolve_model
    from ..runtime.depth import DepthPolicy
    from ..runtime.fit import estimate

    out.configure(json=json, quiet=quiet)
    policy = DepthPolicy.parse(depth)
    model = resolve_model(ref, gates=gates, offline=True)
    with open_gguf(model.path) as f:
        told = estimate(f, n_ctx=n_ctx, n_ubatch=n_ubatch, type_k=type_k, type_v=type_v, depth=policy)
        note = policy.resolve_for(f.metadata).note
    if note:
        out.warn(note)
    result = {"model": str(model.path), **told}
    if json:
        out.json(result)
    else:
        _print(result)
    if not result["fits"]:
        raise typer.Exit(MemoryFitError.exit_code)


def _print(result: dict[str, Any]) -> None:
    from ..amounts import size_text

    available, most = result["available_bytes"], result["n_ctx_max"]
    out.fields(
        [
            ("model", result["model"]),
            ("context", f"{result['n_ctx']} tokens (-c N), {result['type_k']}/{result['type_v']} cache (-ctk, -ctv)"),
            ("weights", _weights(result)),
            ("cache", _cache(result)),
            ("computing", size_text(result["compute_bytes"])),
            ("program", size_text(result["program_bytes"])),
            ("together", size_text(result["total_bytes"])),
            ("available", "unknown" if available is None else size_text(available)),
            ("fits", "yes" if result["fits"] else "no"),
            ("most context", "unknown" if most is None else f"{most} tokens"),
        ]
    )


def _weights(result: dict[str, Any]) -> str:
    from ..amounts import size_text

    size, twice = size_text(result["weights_bytes"]), result["repacked_bytes"]
    if not twice:
        return size
    return f"{size}, and {size_text(twice)} in the order the processor likes; the file's pages go when memory is short"


def _cache(result: dict[str, Any]) -> str:
    from ..amounts import size_text

    size, full, share = size_text(result["kv_bytes"]), size_text(result["kv_bytes_full"]), result["executed_fraction"]
    if result["kv_policy"] != "drop" or result["depth_mode"] == "full":
        return size
    if result["kv_bytes"] == result["kv_bytes_full"]:
        return f"at most {size}: what skips drops its own, and no calibration says how much that is"
    return f"{size}, for {share:.0%} of the layers run (--depth {result['depth_mode']}); {full} at full depth"
