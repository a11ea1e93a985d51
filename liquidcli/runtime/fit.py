"""How much memory a model with a context needs, and the longest context that fits.

An estimate from a file's metadata; loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..gguf_file import GGUFFile, check_loadable
from .depth import DepthPolicy
from .info import DEFAULT_CTX, trained_context
from .kv_share import expected_share, kept_share
from .machine import available_bytes, memory_need


def estimate(
    f: GGUFFile,
    *,
    n_ctx: int = 0,
    n_ubatch: int = 512,
    type_k: str = "f16",
    type_v: str = "f16",
    depth: DepthPolicy | None = None,
) -> dict[str, Any]:
    """Bytes by purpose, whether they fit, and `n_ctx_max`, up to the context the model was trained for.

    Where skipped layers drop K and V, `kv_bytes` is what the calibration leads to expect at this depth.
    """
    depth = depth or DepthPolicy()
    check_loadable(f, need_tokenizer=False)
    depth.resolve_for(f.metadata)
    trained, available = trained_context(f.metadata), available_bytes()
    n_ctx = n_ctx or min(trained, DEFAULT_CTX)
    share, tensors = kept_share(f.metadata, depth), tuple(f.tensors.values())

    def need(tokens: int):
        return memory_need(
            f.metadata, f.size_bytes, tensors, n_ctx=tokens, n_ubatch=n_ubatch, n_outputs=1, type_k=type_k,
            type_v=type_v, kv_share=share,
        )  # fmt: skip

    def fits(tokens: int) -> bool:
        return available is None or need(tokens).least_bytes <= available

    wanted = need(n_ctx)
    return {
        "n_ctx": n_ctx,
        "type_k": type_k,
        "type_v": type_v,
        "weights_bytes": wanted.weights_bytes,
        "repacked_bytes": wanted.repacked_bytes,
        "kv_bytes": wanted.kv_bytes,
        "kv_bytes_full": round(wanted.kv_bytes / share),
        "kv_policy": str(f.metadata.get("liquid.depth.kv_policy", "none")),
        "depth_mode": str(depth),
        "executed_fraction": expected_share(f.metadata, depth),
        "compute_bytes": wanted.compute_bytes,
        "program_bytes": wanted.program_bytes,
        "total_bytes": wanted.total_bytes,
        "available_bytes": available,
        "fits": fits(n_ctx),
        "n_ctx_max": None if available is None else _largest(fits, trained),
    }


def verdict(metadata: Mapping[str, Any], size_bytes: int) -> dict[str, Any]:
    """Would a file of this size with these keys fit, with the context a chat gets? For files that are not here yet."""
    n_ctx, available = min(trained_context(metadata), DEFAULT_CTX), available_bytes()
    needed = memory_need(metadata, size_bytes, n_ctx=n_ctx, n_ubatch=512, n_outputs=1).total_bytes
    fits = None if available is None else needed <= available
    told = {"size_bytes": size_bytes, "memory_bytes": needed, "n_ctx": n_ctx}
    return {**told, "available_bytes": available, "fits": fits}


def _largest(fits: Any, limit: int) -> int:
    """The largest number up to `limit` that fits; every smaller one fits too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
