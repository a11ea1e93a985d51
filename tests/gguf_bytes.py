"""Writes GGUF files byte by byte, right or wrong on purpose: what tests of the reader and of quantize start from.

Knows the container's layout and a smallest llama-like model. Does without the gguf package's writer, which
refuses to be wrong.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT16 = 4, 5, 6, 7, 8, 9, 2
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
_PACK = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT16: "<H"}


@dataclass
class Tensor:
    shape: tuple[int, ...]  # ggml order
    data: bytes
    type: int = F32
    offset: int | None = None  # None: right behind the one before


@dataclass
class GGUFBytes:
    keys: dict[str, tuple[int, Any]] = field(default_factory=dict)  # (type, value), (ARRAY, (type, values))
    tensors: dict[str, Tensor] = field(default_factory=dict)
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_keys: int | None = None
    n_tensors: int | None = None
    extra_keys: bytes = b""
    extra_tensors: bytes = b""

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(string(key) + value(*pair) for key, pair in self.keys.items()) + self.extra_keys
        data = b""
        for name, tensor in self.tensors.items():
            offset = len(data) if tensor.offset is None else tensor.offset
            head += describe(name, tensor.shape, tensor.type, offset)
            data += tensor.data + bytes(-len(tensor.data) % self.alignment)
        head += self.extra_tensors
        return head + bytes(-len(head) % self.alignment) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IIQ", ARRAY, element, len(items)) + b"".join(value(element, item)[4:] for item in items)
    return struct.pack("<I", kind) + (string(content) if kind == STRING else struct.pack(_PACK[kind], content))


def describe(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def f32(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers; `shape` in ggml order."""
    return Tensor(shape, np.random.default_rng(seed).standard_normal(shape[::-1]).astype("<f4").tobytes())


def strings(*items: str) -> tuple[int, Any]:
    return ARRAY, (STRING, items)


def llama(
    n_layer: int = 2, n_embd: int = 32, n_head: int = 4, n_head_kv: int = 2, n_ff: int = 64, arch: str = "llama"
) -> GGUFBytes:
    """The smallest model that llama.cpp would load."""
    tokens = [f"t{i}" for i in range(16)]
    sizes = {
        "block_count": n_layer, "context_length": 64, "embedding_length": n_embd, "feed_forward_length": n_ff,
        "attention.head_count": n_head, "attention.head_count_kv": n_head_kv,
    }  # fmt: skip
    keys: dict[str, tuple[int, Any]] = {"general.architecture": (STRING, arch)}
    keys |= {f"{arch}.{name}": (UINT32, size) for name, size in sizes.items()}
    keys[f"{arch}.attention.layer_norm_rms_epsilon"] = (FLOAT32, 1e-5)
    keys["tokenizer.ggml.model"] = (STRING, "gpt2")
    keys["tokenizer.ggml.tokens"] = strings(*tokens)
    keys["tokenizer.ggml.token_type"] = (ARRAY, (INT32, [1] * len(tokens)))
    keys["tokenizer.ggml.merges"] = strings("t 1")
    head_dim = n_embd // n_head
    tensors = {"token_embd.weight": f32(n_embd, len(tokens)), "output_norm.weight": f32(n_embd)}
    for i in range(n_layer):
        shapes = {
            "attn_norm": (n_embd,), "attn_q": (n_embd, n_embd), "attn_k": (n_embd, n_head_kv * head_dim),
            "attn_v": (n_embd, n_head_kv * head_dim), "attn_output": (n_embd, n_embd), "ffn_norm": (n_embd,),
            "ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd),
        }  # fmt: skip
        tensors |= {f"blk.{i}.{name}.weight": f32(*shape, seed=i) for name, shape in shapes.items()}
    return GGUFBytes(keys, tensors)


def liquid(n_layer: int = 4, spans: tuple[int, ...] = (0, 1, 2, 0), kind: str = "linear", **sizes: int) -> GGUFBytes:
    """A smallest gated model: linear gates without bias, or bottleneck gates of rank 4 with adapters of 32 units."""
    g = llama(n_layer, arch="liquid", **sizes)
    n_embd = g.keys["liquid.embedding_length"][1]
    g.keys["liquid.depth.version"] = (UINT32, 1)
    g.keys["liquid.depth.gate_kind"] = (STRING, kind)
    g.keys["liquid.depth.gate_span"] = (ARRAY, (UINT32, spans))
    g.keys["liquid.depth.threshold"] = (FLOAT32, 0.5)
    g.keys["liquid.depth.kv_policy"] = (STRING, "project")
    linear = {"depth_gate": (n_embd,)}
    bottleneck = {
        "depth_gate": (4,), "depth_gate_enc": (n_embd, 4), "depth_gate_norm": (4,),
        "depth_skip_gate": (n_embd, 32), "depth_skip_up": (n_embd, 32), "depth_skip_down": (32, n_embd),
    }  # fmt: skip
    for i in (i for i, span in enumerate(spans) if span):
        shapes = linear if kind == "linear" else bottleneck
        g.tensors |= {f"blk.{i}.{name}.weight": f32(*shape, seed=i) for name, shape in shapes.items()}
    return g
