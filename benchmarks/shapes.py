"""Named model shapes, and the list of tensors that a model of a shape consists of.

Knows sizes, tensor names and stored types. Knows nothing of files or of random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Type = GGMLQuantizationType
_TIED_LOGIT = 6.0  # of a token for itself, were the layers to add nothing: keeps a tied head from deciding everything


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; `n_expert` = 0 means a dense feed-forward network."""

    name: str
    n_layer: int
    n_embd: int
    n_ff: int  # of one expert, if there are experts
    n_head: int
    n_head_kv: int
    n_vocab: int
    tied: bool
    rope_base: float = 500000.0
    n_expert: int = 0
    n_expert_used: int = 0

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_embd_kv(self) -> int:
        return self.head_dim * self.n_head_kv


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 8, 256, 768, 8, 4, 1024, True),
        Shape("smollm2-135m", 30, 576, 1536, 9, 3, 49152, True, 100000.0),
        Shape("llama-3.2-1b", 16, 2048, 8192, 32, 8, 128256, True),
        Shape("llama-3-8b", 32, 4096, 14336, 32, 8, 128256, False),
        Shape("moe-1b", 24, 1024, 1536, 16, 4, 32768, True, n_expert=8, n_expert_used=2),
        Shape("tiny-moe", 8, 256, 256, 8, 4, 1024, True, n_expert=8, n_expert_used=2),
    )
}


@dataclass(frozen=True)
class Gates:
    """The depth parts of a model: which layers have a gate, of what kind, and the adapters' hidden size (0: none)."""

    layers: tuple[int, ...]
    kind: str = "linear"
    rank: int = 0
    adapter: int = 0
    scaled: bool = False
    type: Type = Type.F32
    kv_policy: str = "project"


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written: shape in ggml order; `std` of its random values, or `fill`, its one value."""

    name: str
    shape: tuple[int, ...]
    type: Type
    std: float = 0.0
    fill: float | None = None

    @property
    def size_bytes(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return n // block * block_bytes


def stored_type(wanted: Type, n_row: int) -> Type:
    """`wanted`, or Q8_0 where rows of `n_row` are no multiple of its block (Q6_K on a width of 576)."""
    return wanted if n_row % GGML_QUANT_SIZES[wanted][0] == 0 else Type.Q8_0


def tensors(shape: Shape, body: Type, head: Type, gates: Gates | None = None) -> list[Tensor]:
    """Every tensor of a model, in file order."""
    head = stored_type(head, shape.n_embd)
    std = _TIED_LOGIT / shape.n_embd if shape.tied else 1.0
    table = [Tensor("token_embd.weight", (shape.n_embd, shape.n_vocab), head, std=std)]
    for layer in range(shape.n_layer):
        table += _attention(shape, layer, body) + _feed_forward(shape, layer, body)
        if gates and layer in gates.layers:
            table += _gate(shape, layer, gates) + _adapter(shape, layer, body, gates)
    table.append(Tensor("output_norm.weight", (shape.n_embd,), Type.F32, fill=1.0))
    if not shape.tied:
        table.append(Tensor("output.weight", (shape.n_embd, shape.n_vocab), head, std=shape.n_embd**-0.5))
    return table


def _matrix(name: str, shape: tuple[int, ...], kind: Type, gain: float = 1.0) -> Tensor:
    return Tensor(name, shape, stored_type(kind, shape[0]), std=gain * shape[0] ** -0.5)


def _attention(shape: Shape, layer: int, body: Type) -> list[Tensor]:
    blk, n, kv = f"blk.{layer}.", shape.n_embd, shape.n_embd_kv
    return [
        Tensor(blk + "attn_norm.weight", (n,), Type.F32, fill=1.0),
        _matrix(blk + "attn_q.weight", (n, n), body),
        _matrix(blk + "attn_k.weight", (n, kv), body),
        _matrix(blk + "attn_v.weight", (n, kv), body),
        _matrix(blk + "attn_output.weight", (n, n), body, _residual_gain(shape)),
    ]


def _feed_forward(shape: Shape, layer: int, body: Type) -> list[Tensor]:
    blk, n, ff = f"blk.{layer}.", shape.n_embd, shape.n_ff
    experts = (shape.n_expert,) if shape.n_expert else ()
    suffix = "_exps.weight" if experts else ".weight"
    norm = [Tensor(blk + "ffn_norm.weight", (n,), Type.F32, fill=1.0)]
    router = [_matrix(blk + "ffn_gate_inp.weight", (n, shape.n_expert), Type.F32)] if experts else []
    return [
        *norm,
        *router,
        _matrix(blk + "ffn_gate" + suffix, (n, ff, *experts), body),
        _matrix(blk + "ffn_up" + suffix, (n, ff, *experts), body),
        _matrix(blk + "ffn_down" + suffix, (ff, n, *experts), body, _residual_gain(shape)),
    ]


def _gate(shape: Shape, layer: int, gates: Gates) -> list[Tensor]:
    blk, n, r = f"blk.{layer}.depth_gate", shape.n_embd, gates.rank
    bias = Tensor(blk + ".bias", (1,), Type.F32, fill=0.0)
    if gates.kind == "linear":
        return [_matrix(blk + ".weight", (n,), gates.type), bias]
    return [
        _matrix(blk + "_enc.weight", (n, r), gates.type),
        Tensor(blk + "_norm.weight", (r,), Type.F32, fill=1.0),
        _matrix(blk + ".weight", (r,), gates.type, gain=2.0),
        bias,
    ]


def _adapter(shape: Shape, layer: int, body: Type, gates: Gates) -> list[Tensor]:
    blk, n, m = f"blk.{layer}.depth_skip_", shape.n_embd, gates.adapter
    if not m:
        return []
    return [
        _matrix(blk + "gate.weight", (n, m), body),
        _matrix(blk + "up.weight", (n, m), body),
        _matrix(blk + "down.weight", (m, n), body, _residual_gain(shape)),
    ]


def _residual_gain(shape: Shape) -> float:
    return (2 * shape.n_layer) ** -0.5
