"""Which base a gate pack belongs to: architecture, shapes, a hash over the norms and the order of values in matrices,
none of which quantization changes.

ref: sha256 over attn_norm and ffn_norm of all layers in order (attn_norm.0, ffn_norm.0, attn_norm.1, ...), then
output_norm, each value rounded to BF16 to nearest, ties to even, little-endian. Knows nothing of gates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

import numpy as np

from ..errors import IntegrityError, UsageError, quote
from ..gguf_file import GGUFFile
from .matrix_order import MatrixOrder


@dataclass(frozen=True)
class Identity:
    """What must agree between a pack and its base. Field names are the pack's keys under `depth_gates.base.`."""

    architecture: str
    block_count: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    norms_sha256: str
    order: MatrixOrder = field(default=MatrixOrder(), repr=False)  # empty in packs written before there was one

    def as_json(self) -> dict:
        """All that tells a person something: not the order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "order"}

    def difference(self, other: Identity) -> str | None:
        """What tells the two apart, in words; None for two quantizations of the same weights."""
        theirs = other.as_json()
        for name, mine in self.as_json().items():
            if mine != theirs[name] and name != "norms_sha256":
                return f"the file's {name.replace('_', ' ')} is {theirs[name]}, the pack's {mine}"
        if self.norms_sha256 != other.norms_sha256:
            return "the shapes agree, but the norms are those of other weights (a fine-tune or another model)"
        if found := self.order.difference(other.order):
            return f"shapes and norms agree, but {found}"
        return None


def check_is_model(f: GGUFFile) -> None:
    """UsageError for a pack or an adapter where the plain model is meant."""
    if (kind := f.metadata.get("general.type", "model")) != "model":
        hint = "the plain base is meant here"
        raise UsageError(f"{f.path} is no model but a GGUF of the type {quote(kind)}", hint=hint)


def bf16_bytes(values: np.ndarray) -> bytes:
    """float32 to BF16, nearest, ties to even, as little-endian bytes."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").tobytes()


def norms_sha256(f: GGUFFile) -> str:
    digest = hashlib.sha256()
    names = [f"blk.{i}.{norm}.weight" for i in range(f.block_count) for norm in ("attn_norm", "ffn_norm")]
    for name in [*names, "output_norm.weight"]:
        if name not in f.tensors:
            raise IntegrityError(f"{f.path} has no {name}, so it cannot be told which model it is")
        digest.update(bf16_bytes(f.array(name)))
    return digest.hexdigest()


def base_identity(f: GGUFFile) -> Identity:
    """The identity of a base model; IntegrityError where a norm is missing or a number is none."""
    number = lambda key, default=0: _number(f, key, default)  # noqa: E731
    n_head = number("attention.head_count")
    return Identity(
        f.architecture,
        f.block_count,
        number("embedding_length"),
        number("feed_forward_length"),
        n_head,
        number("attention.head_count_kv", n_head),
        norms_sha256(f),
        MatrixOrder.of(f),
    )


def _number(f: GGUFFile, key: str, default: int) -> int:
    value = f.metadata.get(f"{f.architecture}.{key}", default)
    if isinstance(value, list):
        value = sum(value) if all(isinstance(v, int) for v in value) else -1
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IntegrityError(f"{f.path}: {f.architecture}.{key} is {quote(value)}, a number was expected")
    return value
