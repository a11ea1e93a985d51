"""A frozen llama-shaped base and the gates on it, in PyTorch, in the form that trains: every branch is computed, a
mask picks.

Knows one layer of the architecture page with linear gates, span 1, scope `layer`, kv_policy project and both scaling
flags false. Knows nothing of text, losses or files other than the base. `liquidcli.reference` is what its outputs are
checked against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..gguf_file import GGUFFile, open_gguf

_LAYER_TENSORS = (
    "attn_norm",
    "ffn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)


@dataclass(frozen=True)
class BaseShape:
    """What the forward pass needs to know of the base."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    eps: float
    rope_base: float


@dataclass
class Base:
    """The frozen weights, float32."""

    path: Path
    shape: BaseShape
    embed: Tensor  # [n_vocab, n_embd]
    head: Tensor  # [n_vocab, n_embd]
    output_norm: Tensor  # [n_embd]
    layers: list[dict[str, Tensor]] = field(default_factory=list)


def _shape(f: GGUFFile) -> BaseShape:
    if f.architecture != "llama":
        raise UsageError(
            f"{f.path} has the architecture {f.architecture!r}; gates can be trained on llama-shaped bases"
        )

    def get(key: str, default: Any = None) -> Any:
        return f.metadata.get(f"llama.{key}", default)

    n_head, n_embd = get("attention.head_count"), get("embedding_length")
    unsupported = [
        key
        for key in ("rope.scaling.type", "expert_count", "attention.sliding_window")
        if get(key) not in (None, 0, "none")
    ]
    if unsupported or "rope_freqs.weight" in f.tensors or "blk.0.attn_q.bias" in f.tensors:
        raise UsageError(
            f"{f.path} uses {', '.join(unsupported) or 'rope factors or biases'}, which the trainer does not know"
        )
    return BaseShape(
        n_layer=f.block_count,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=get("attention.head_count_kv", n_head),
        head_dim=get("attention.key_length", n_embd // n_head),
        eps=get("attention.layer_norm_rms_epsilon"),
        rope_base=get("rope.freq_base", 10000.0),
    )


def load_base(path: Path) -> Base:
    """The base of a GGUF, dequantized to float32."""
    with open_gguf(path) as f:
        shape = _shape(f)
        get = lambda name: torch.from_numpy(f.array(f"{name}.weight").copy())  # noqa: E731
        embed = get("token_embd")
        head = get("output") if "output.weight" in f.tensors else embed
        layers = [{name: get(f"blk.{i}.{name}") for name in _LAYER_TENSORS} for i in range(shape.n_layer)]
        return Base(Path(path), shape, embed, head, get("output_norm"), layers)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # ref: x / sqrt(mean(x^2) + eps) * weight
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rope_table(n: int, shape: BaseShape) -> tuple[Tensor, Tensor]:  # cos, sin: [n, head_dim/2]
    frequencies = shape.rope_base ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
    angles = torch.arange(n, dtype=torch.float64)[:, None] * frequencies[None, :]
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x [B, H, T, D]; pairs (2i, 2i+1), ggml's `norm` layout
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


def run_layer(
    h: Tensor, layer: dict[str, Tensor], shape: BaseShape, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(what the layer makes of h, its attention-normed input); K and V come from every token, as under `project`."""
    batch, length, _ = h.shape
    n = rms_norm(h, layer["attn_norm"], shape.eps)  # [B, T, n_embd]
    split = lambda x, heads: x.view(batch, length, heads, shape.head_dim).transpose(1, 2)  # noqa: E731
    cos, sin = rope[0][:length], rope[1][:length]
    q = rotate(split(n @ layer["attn_q"].T, shape.n_head), cos, sin)  # [B, H, T, D]
    k = rotate(split(n @ layer["attn_k"].T, shape.n_head_kv), cos, sin)
    v = split(n @ layer["attn_v"].T, shape.n_head_kv)
    repeat = shape.n_head // shape.n_head_kv
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, -1)
    h1 = h + attended @ layer["attn_output"].T
    x = rms_norm(h1, layer["ffn_norm"], shape.eps)
    return h1 + (F.silu(x @ layer["ffn_gate"].T) * (x @ layer["ffn_up"].T)) @ layer["ffn_down"].T, n


class Gates(nn.Module):
    """The trained part: one linear gate and one adapter for each gated layer."""

    def __init__(self, layers: list[int], n_embd: int, adapter_size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        count, m = len(layers), adapter_size
        self.layers = list(layers)
        self.weight = nn.Parameter(torch.zeros(count, n_embd))
        self.bias = nn.Parameter(torch.full((count,), 4.0))
        self.skip_gate = nn.Parameter(torch.randn(count, n_embd, m, generator=generator) * n_embd**-0.5)
        self.skip_up = nn.Parameter(torch.randn(count, n_embd, m, generator=generator) * n_embd**-0.5)
        self.skip_down = nn.Parameter(torch.zeros(count, m, n_embd))

    def adapter(self, i: int, x: Tensor) -> Tensor:  # [..., n_embd] -> [..., n_embd]
        return (F.silu(x @ self.skip_gate[i]) * (x @ self.skip_up[i])) @ self.skip_down[i]

    def logit(self, i: int, n: Tensor) -> Tensor:  # [...]
        return n @ self.weight[i] + self.bias[i]

    def subset(self, layers: list[int]) -> Gates:
        """The same gates and adapters, those of `layers` only."""
        rows = [self.layers.index(layer) for layer in layers]
        part = Gates(layers, self.weight.shape[1], self.skip_gate.shape[2])
        part.load_state_dict({name: value[rows] for name, value in self.state_dict().items()})
        return part


@dataclass
class Trace:
    """What one pass decided: per gate, logits and run (1) or skip (0)."""

    logits: list[Tensor] = field(default_factory=list)  # n_gate x [B, T]
    run: list[Tensor] = field(default_factory=list)  # n_gate x [B, T]

    def executed(self, mask: Tensor, n_layer: int) -> float:
        """Mean executed share of all layers over the tokens of `mask`."""
        skipped = sum(float(((1 - run) * mask).sum()) for run in self.run)
        return 1.0 - skipped / (float(mask.sum()) * n_layer)


class HardStep(torch.autograd.Function):
    """1 where the logit is above the threshold's; the backward pass is that of a sigmoid around it."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        w = torch.sigmoid(z)
        return grad * w * (1 - w)


class Network:
    """Base and gates together; `lower` and `upper` split the pass at the first gated layer, below which all passes
    agree."""

    def __init__(self, base: Base, always_run_tokens: int, n_ctx: int = 512) -> None:
        self.base, self.shape = base, base.shape
        self.always_run_tokens = always_run_tokens
        self.rope = rope_table(n_ctx, base.shape)

    def lower(self, tokens: Tensor, until: int) -> Tensor:  # [B, T] -> [B, T, n_embd]
        h = self.base.embed[tokens]
        for layer in self.base.layers[:until]:
            h, _ = run_layer(h, layer, self.shape, self.rope)
        return h

    def full(self, h: Tensor, start: int) -> Tensor:
        """The rest of the plain base, from layer `start`, without the output norm."""
        for layer in self.base.layers[start:]:
            h, _ = run_layer(h, layer, self.shape, self.rope)
        return h

    def gated(
        self, h: Tensor, start: int, gates: Gates, z_threshold: float = 0.0, until: int | None = None
    ) -> tuple[Tensor, Trace]:
        """As `full`, with hard decisions at z > z_threshold; gradients reach gates (straight through) and adapters."""
        trace = Trace()
        exempt = torch.zeros(h.shape[1])
        exempt[: self.always_run_tokens] = 1.0
        for il in range(start, self.shape.n_layer if until is None else until):
            layer = self.base.layers[il]
            ran, n = run_layer(h, layer, self.shape, self.rope)
            if il not in gates.layers:
                h = ran
                continue
            i = gates.layers.index(il)
            z = gates.logit(i, n)
            run = HardStep.apply(z - z_threshold)
            run = torch.maximum(run, exempt)  # [B, T]
            skipped = h + gates.adapter(i, rms_norm(h, layer["ffn_norm"], self.shape.eps))
            h = torch.lerp(skipped, ran, run[..., None])
            trace.logits.append(z.detach())
            trace.run.append(run.detach() if not run.requires_grad else run)
        return h, trace

    def final(self, h: Tensor) -> Tensor:
        return rms_norm(h, self.base.output_norm, self.shape.eps)
