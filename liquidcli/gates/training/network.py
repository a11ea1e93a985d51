"""A frozen base and the gates on it, in the form that trains: every branch is computed, a mask picks.

Knows linear gates over spans of layers or halves of one, both policies for K and V, and low-rank updates of the base;
both scaling flags are false, as in every pack that is trained here. Knows nothing of text or losses.
`liquidcli.reference` is what its outputs are checked against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...gate_layout import GatePlace
from .base import Base, BaseShape, load_base
from .forward import Rope, attention, feed, rms_norm, rope_table, rotate, run_layer

__all__ = [
    "UPDATED", "Base", "BaseShape", "Gates", "HardStep", "Network", "Trace", "load_base", "places_of", "rms_norm",
    "rope_table", "rotate", "run_layer",
]  # fmt: skip

UPDATED = ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")  # matrices that a low-rank update may change


def places_of(where: Iterable[int | GatePlace]) -> list[GatePlace]:
    """Numbers mean gates over one whole layer."""
    return [one if isinstance(one, GatePlace) else GatePlace(one, 1, "layer", False) for one in where]


class Gates(nn.Module):
    """The trained part: a linear gate and an adapter for each place, and low-rank updates of the base if asked for."""

    def __init__(self, where: Sequence[int | GatePlace], n_embd: int, adapter_size: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, device="cpu").to(torch.get_default_device())  # noqa: E731
        self.places = places_of(where)
        self.layers = [place.layer for place in self.places]
        count, m = len(self.places), adapter_size
        self.weight = nn.Parameter(torch.zeros(count, n_embd))
        self.bias = nn.Parameter(torch.full((count,), 4.0))
        self.skip_gate = nn.Parameter(draw(count, n_embd, m) * n_embd**-0.5)
        self.skip_up = nn.Parameter(draw(count, n_embd, m) * n_embd**-0.5)
        self.skip_down = nn.Parameter(torch.zeros(count, m, n_embd))
        self.updates = nn.ParameterDict()  # "LAYER/TENSOR/a" [r, in], "LAYER/TENSOR/b" [out, r]

    def add_updates(self, base: Base, rank: int, seed: int = 0) -> None:
        """Zero updates of rank `rank` for the dense matrices of every layer from the first gate on."""
        generator = torch.Generator("cpu").manual_seed(seed)
        for il in range(min(self.layers), base.shape.n_layer):
            for name in (name for name in UPDATED if rank and name in base.layers[il]):
                n_out, n_in = base.layers[il][name].shape
                a = torch.randn(rank, n_in, generator=generator, device="cpu").to(torch.get_default_device())
                self.updates[f"{il}/{name}/a"] = nn.Parameter(a * n_in**-0.5 * base.units.base(name, il))
                self.updates[f"{il}/{name}/b"] = nn.Parameter(torch.zeros(n_out, rank))

    def updated(self, il: int, layer: dict[str, Tensor]) -> dict[str, Tensor]:
        """The layer's weights with what is added to them."""
        if not self.updates:
            return layer
        names = [name for name in UPDATED if f"{il}/{name}/a" in self.updates]
        added = {name: self.updates[f"{il}/{name}/b"] @ self.updates[f"{il}/{name}/a"] for name in names}
        return layer | {name: layer[name] + added[name] for name in names}

    def at(self, layer: int) -> dict[str, int]:
        """By scope, the rows of the gates at a layer."""
        return {place.scope: i for i, place in enumerate(self.places) if place.layer == layer}

    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.parameters())

    @property
    def may_adapt(self) -> Tensor:  # [n_gate] of 0 and 1
        return torch.tensor([float(place.may_adapt) for place in self.places])

    def adapter(self, i: int, x: Tensor) -> Tensor:  # [..., n_embd] -> [..., n_embd]
        return (F.silu(x @ self.skip_gate[i]) * (x @ self.skip_up[i])) @ self.skip_down[i]

    def logit(self, i: int, n: Tensor) -> Tensor:  # [...]
        return (n * self.weight[i]).sum(-1) + self.bias[i]  # no matrix product, which may be one of 16 bits

    def subset(self, where: Sequence[int | GatePlace]) -> Gates:
        """The same gates and adapters, those of some places only."""
        rows = [self.places.index(place) for place in places_of(where)]
        part = Gates(places_of(where), self.weight.shape[1], self.skip_gate.shape[2])
        part.load_state_dict({name: value[rows] for name, value in self.state_dict().items()})
        return part


@dataclass
class Trace:
    """What one pass decided: per gate, logits and run (1) or skip (0), and how many layers it switches."""

    logits: list[Tensor] = field(default_factory=list)  # n_gate x [B, T]
    run: list[Tensor] = field(default_factory=list)  # n_gate x [B, T]
    worth: list[float] = field(default_factory=list)  # n_gate; a half counts by its share of the parameters

    def skipped(self, mask: Tensor) -> Tensor:
        """Layers that the tokens of `mask` skipped, in all."""
        zero = torch.zeros((), device=mask.device)
        return sum((w * ((1 - run) * mask).sum() for w, run in zip(self.worth, self.run, strict=True)), zero)

    def executed(self, mask: Tensor, n_layer: int) -> float:
        """Mean executed share of all layers over the tokens of `mask`."""
        return 1.0 - float(self.skipped(mask).detach()) / (float(mask.sum()) * n_layer)


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
    """Base and gates together; `lower` and `full` split the plain pass at the first gated layer, below which all
    passes agree."""

    def __init__(self, base: Base, always_run_tokens: int, n_ctx: int = 512, kv: str = "project") -> None:
        self.base, self.shape, self.kv = base, base.shape, kv
        self.always_run_tokens = always_run_tokens
        self.ropes = {windowed: rope_table(n_ctx, base.shape, windowed) for windowed in (False, True)}

    def norm(self, x: Tensor, layer: dict[str, Tensor], name: str) -> Tensor:
        return rms_norm(x, layer[name], self.shape.state_eps)

    def rope(self, il: int) -> Rope:
        return self.ropes[bool(self.shape.windows and self.shape.windows[il])]

    def mask(self, il: int, length: int, stored: Tensor | None = None) -> Tensor | None:
        """Who sees whom in a layer, None where it is simply the past; `stored` [B, T]: whose K and V exist. A token
        always sees its own."""
        window = self.shape.windows[il] if self.shape.windows else 0
        if not window and stored is None:
            return None
        at = torch.arange(length)
        back = at[:, None] - at[None, :]  # [T, T]
        seen = (back >= 0) & (back < window) if window else back >= 0
        return seen if stored is None else seen & (stored.bool()[:, None, None, :] | (back == 0))

    def layer(self, il: int, h: Tensor, layer: dict[str, Tensor] | None = None) -> Tensor:
        """What the whole layer makes of h, every token running it."""
        return run_layer(h, layer or self.base.layers[il], self.shape, self.rope(il), self.mask(il, h.shape[1]))[0]

    def lower(self, tokens: Tensor, until: int) -> Tensor:  # [B, T] -> [B, T, n_embd]
        h = self.base.embed[tokens] * self.shape.embedding_scale
        for il in range(until):
            h = self.layer(il, h)
        return h

    def full(self, h: Tensor, start: int) -> Tensor:
        """The rest of the plain base, from layer `start`, without the output norm."""
        for il in range(start, self.shape.n_layer):
            h = self.layer(il, h)
        return h

    def worth(self, place: GatePlace) -> float:
        """Layers that a gate switches: its span, or its half's share of the layer's parameters."""
        if place.scope == "layer":
            return float(place.span)
        share = self.base.attention_share(place.layer)
        return share if place.scope == "attn" else 1 - share

    def gated(
        self, h: Tensor, start: int, gates: Gates, z_threshold: float = 0.0, until: int | None = None
    ) -> tuple[Tensor, Trace]:
        """As `full`, with hard decisions at z > z_threshold; gradients reach gates (straight through) and adapters."""
        way = _Pass(self, gates, z_threshold, h.shape[1])
        il, end = start, self.shape.n_layer if until is None else until
        while il < end:
            here = gates.at(il)
            if "layer" in here:
                h = way.span(h, here["layer"])
                il += gates.places[here["layer"]].span
                continue
            layer = gates.updated(il, self.base.layers[il])
            h = way.halves(h, il, layer, here) if here else self.layer(il, h, layer)
            il += 1
        return h, way.trace

    def final(self, h: Tensor) -> Tensor:
        return rms_norm(h, self.base.output_norm, self.shape.state_eps)


class _Pass:
    """One pass with decisions under way."""

    def __init__(self, network: Network, gates: Gates, z_threshold: float, length: int) -> None:
        self.network, self.gates, self.z_threshold, self.trace = network, gates, z_threshold, Trace()
        self.exempt = torch.zeros(length)
        self.exempt[: network.always_run_tokens] = 1.0

    def decide(self, i: int, n: Tensor) -> Tensor:  # [B, T]
        z = self.gates.logit(i, n)
        run = torch.maximum(HardStep.apply(z - self.z_threshold), self.exempt)
        self.trace.logits.append(z.detach())
        self.trace.run.append(run if run.requires_grad else run.detach())
        self.trace.worth.append(self.network.worth(self.gates.places[i]))
        return run

    def span(self, entered: Tensor, i: int) -> Tensor:
        """The layers under gate `i`: `ran` is what every token would be if it ran, K and V are of what they are."""
        net, place, run, ran = self.network, self.gates.places[i], None, entered
        first = net.base.layers[place.layer]
        run = self.decide(i, net.norm(entered, first, "attn_norm"))
        chose, drop = run.detach()[..., None] > 0, net.kv == "drop"
        for il in range(place.layer, place.layer + place.span):
            layer = self.gates.updated(il, net.base.layers[il])
            n = net.norm(ran, layer, "attn_norm")
            stays = drop or il == place.layer
            kv = n if stays else net.norm(torch.where(chose, ran, entered), layer, "attn_norm")
            mask = net.mask(il, ran.shape[1], run.detach() if drop else None)
            h1 = ran + attention(n, layer, net.shape, net.rope(il), mask, kv)
            ran = h1 + feed(net.norm(h1, layer, "ffn_norm"), layer, net.shape)
        skipped = entered + self.gates.adapter(i, net.norm(entered, first, "ffn_norm"))
        return torch.lerp(skipped, ran, run[..., None])

    def halves(self, h: Tensor, il: int, layer: dict[str, Tensor], here: dict[str, int]) -> Tensor:
        net, run = self.network, None
        n = net.norm(h, layer, "attn_norm")
        if "attn" in here:
            run = self.decide(here["attn"], n)
        stored = run.detach() if run is not None and net.kv == "drop" else None
        attended = attention(n, layer, net.shape, net.rope(il), net.mask(il, h.shape[1], stored))
        h1 = h + (attended if run is None else attended * run[..., None])
        x = net.norm(h1, layer, "ffn_norm")
        out = feed(x, layer, net.shape)
        if "ffn" not in here:
            return h1 + out
        i = here["ffn"]
        return h1 + torch.lerp(self.gates.adapter(i, x), out, self.decide(i, x)[..., None])
