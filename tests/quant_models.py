"""Tiny random llama models for quantize: dense, grouped heads, experts, rows that K types do not fit.

Knows shapes and source types only; the weights are noise, which quantizes as well as anything.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize

from tests.gguf_bytes import FLOAT32, STRING, UINT32, GGUFBytes, Tensor, strings

N_VOCAB = 96


@dataclass(frozen=True)
class Shape:
    n_layer: int = 8
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 4
    n_ff: int = 256
    n_expert: int = 0
    tied: bool = False
    source: T = T.F16


SHAPES = {
    "dense-256": Shape(n_layer=16),
    "gqa4-512": Shape(n_layer=8, n_embd=512, n_head=8, n_head_kv=2, n_ff=512, tied=True, source=T.F32),
    "experts8-256": Shape(n_layer=6, n_head_kv=1, n_expert=8),
    "experts4-512": Shape(n_layer=3, n_embd=512, n_head_kv=2, n_ff=288, n_expert=4, source=T.F32),
    "odd-320": Shape(n_layer=9, n_embd=320, n_head=5, n_head_kv=1, n_ff=80, source=T.BF16),
    "tied-320": Shape(n_layer=2, n_embd=320, n_head=5, n_head_kv=5, n_ff=512, tied=True),
}


def tensor(rng: np.random.Generator, kind: T, *shape: int) -> Tensor:
    """Noise with a few outliers, as weights have; `shape` in ggml order, vectors stay F32."""
    numbers = rng.standard_normal(shape[::-1], np.float32) * np.float32(0.02)
    numbers.flat[:: 97] *= 8
    kind = kind if len(shape) > 1 else T.F32
    return Tensor(shape, np.ascontiguousarray(quantize(numbers, kind)).tobytes(), int(kind))


def blank(kind: T, *shape: int) -> Tensor:
    """Zeros, where only the description matters."""
    kind = kind if len(shape) > 1 else T.F32
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return Tensor(shape, bytes(int(np.prod(shape)) // block * block_bytes), int(kind))


def make(shape: Shape, arch: str = "llama", seed: int | None = 0) -> GGUFBytes:
    """With noise from `seed`; None makes it blank."""
    rng = np.random.default_rng(seed)
    fill = blank if seed is None else functools.partial(tensor, rng)
    keys = {"general.architecture": (STRING, arch), "general.name": (STRING, "noise"), "general.file_type": (UINT32, 1)}
    sizes = {
        "block_count": shape.n_layer, "context_length": 128, "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff, "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
    }  # fmt: skip
    if shape.n_expert:
        sizes |= {"expert_count": shape.n_expert, "expert_used_count": 2}
    keys |= {f"{arch}.{name}": (UINT32, size) for name, size in sizes.items()}
    keys[f"{arch}.attention.layer_norm_rms_epsilon"] = (FLOAT32, 1e-5)
    keys["tokenizer.ggml.model"] = (STRING, "gpt2")
    keys["tokenizer.ggml.tokens"] = strings(*[f"t{i}" for i in range(N_VOCAB)])
    keys["tokenizer.ggml.merges"] = strings("t 1")
    return GGUFBytes(keys, {name: fill(shape.source, *dims) for name, dims in names(shape).items()})


def names(shape: Shape) -> dict[str, tuple[int, ...]]:
    """All tensors with their shapes, in an order that is not the one in which they are written."""
    d, kv = shape.n_embd, shape.n_embd // shape.n_head * shape.n_head_kv
    tensors: dict[str, tuple[int, ...]] = {}
    for i in range(shape.n_layer):
        rows = {
            "ffn_norm": (d,), "attn_norm": (d,), "attn_v": (d, kv), "attn_q": (d, d), "attn_k": (d, kv),
            "attn_output": (d, d), **feed_forward(shape),
        }  # fmt: skip
        tensors |= {f"blk.{i}.{name}.weight": dims for name, dims in rows.items()}
    tensors |= {"output_norm.weight": (d,), "token_embd.weight": (d, N_VOCAB)}
    return tensors if shape.tied else {**tensors, "output.weight": (d, N_VOCAB)}


def feed_forward(shape: Shape) -> dict[str, tuple[int, ...]]:
    d, n_ff, n = shape.n_embd, shape.n_ff, shape.n_expert
    if not n:
        return {"ffn_gate": (d, n_ff), "ffn_up": (d, n_ff), "ffn_down": (n_ff, d)}
    stacks = {"ffn_gate_exps": (d, n_ff, n), "ffn_up_exps": (d, n_ff, n), "ffn_down_exps": (n_ff, d, n)}
    return {"ffn_gate_inp": (d, n), **stacks}


def write(path: Path, name: str, **changes) -> Path:
    return make(SHAPES[name], **changes).write(path)
