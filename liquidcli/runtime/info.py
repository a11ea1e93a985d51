"""What was loaded, in plain fields.

Knows GGUF keys and what the library reports about a model. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..llama import depth as native
from ..llama.context import Context
from ..llama.model import Model
from .depth import Calibration, Span
from .machine import MemoryNeed
from .windows import CTX_PADDING

DEFAULT_CTX = 4096  # the most that is taken unasked, where the model has more
_BIG_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")


@dataclass(frozen=True)
class EngineInfo:
    """A model and its context."""

    path: Path
    architecture: str
    name: str
    metadata: dict[str, Any] = field(repr=False)  # of the GGUF, without the vocabulary's arrays
    n_layer: int
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_params: int
    size_bytes: int  # of the file(s)
    memory: MemoryNeed
    n_threads: int
    n_threads_batch: int
    gates: tuple[Span, ...] = ()
    threshold: float | None = None  # the model's own; None: no gates
    scaled: bool = False  # gates multiply what they let through
    kv_policy: str = "none"
    calibration: Calibration | None = None
    n_expert: int = 0
    n_expert_used: int = 0
    n_moe_layer: int = 0
    chat_template: str | None = field(default=None, repr=False)


def describe(
    path: Path, metadata: dict[str, Any], size_bytes: int, memory: MemoryNeed, model: Model, context: Context
) -> EngineInfo:
    arch = str(metadata.get("general.architecture"))
    template = metadata.get("tokenizer.chat_template")
    return EngineInfo(
        path=path,
        architecture=arch,
        name=str(metadata.get("general.name") or path.stem),
        metadata={key: value for key, value in metadata.items() if key not in _BIG_ARRAYS},
        n_layer=model.n_layer,
        n_vocab=model.n_vocab,
        n_ctx=context.n_ctx,
        n_ctx_train=model.n_ctx_train,
        n_params=model.n_params,
        size_bytes=size_bytes,
        memory=memory,
        n_threads=context.params.n_threads,
        n_threads_batch=context.params.n_threads_batch,
        chat_template=template if isinstance(template, str) and template.strip() else None,
        **(_own_depth(metadata, model, model.depth) if model.depth else _foreign_depth(arch, metadata, model)),
    )


def trained_context(metadata: Mapping[str, Any]) -> int:
    n_ctx = metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)
    return n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else DEFAULT_CTX


def untrained_context(n_ctx: int, n_ctx_train: int) -> str:
    """What to tell a person whose context is longer than any the model has seen; empty for one that is not."""
    if n_ctx <= n_ctx_train:
        return ""
    return f"the model was trained on {n_ctx_train} tokens; beyond them a context of {n_ctx} makes it ramble"


def raised_context(n_ctx: int, n_ctx_made: int) -> str:
    """What to tell a person who asked for less than llama.cpp makes; empty where nobody asked, or would notice."""
    if not 0 < n_ctx < CTX_PADDING or n_ctx_made <= n_ctx:
        return ""
    return f"a context of {n_ctx_made} tokens is the smallest that llama.cpp makes: it takes the place of -c {n_ctx}"


def _own_depth(metadata: Mapping[str, Any], model: Model, info: native.ModelInfo) -> dict[str, Any]:
    gates = tuple(Span(g.layer, g.span, native.Scope(g.scope).name.lower(), bool(g.is_exit)) for g in model.gates)
    return {
        "gates": gates,
        "threshold": info.threshold if gates else None,
        "scaled": bool(gates and (info.ffn_scaled_by_gate or info.adapter_scaled_by_gate)),
        "kv_policy": native.KVPolicy(info.kv_policy).name.lower(),
        "calibration": Calibration.from_metadata(metadata),
        "n_expert": info.n_expert,
        "n_expert_used": info.n_expert_used,
        "n_moe_layer": info.n_moe_layer,
    }


def _foreign_depth(arch: str, metadata: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Every layer runs; of the experts, as many as the file says."""
    n_expert, used = (metadata.get(f"{arch}.{key}", 0) for key in ("expert_count", "expert_used_count"))
    return {"n_expert": n_expert, "n_expert_used": used, "n_moe_layer": model.n_layer if n_expert else 0}
