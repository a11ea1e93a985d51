"""Stage `local` of a run: what was harvested becomes adapters, gates and the choice of places worth a gate.

Knows the stage's files and its order; the mathematics is in `local`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...gate_layout import GatePlace
from .local import Harvest, Harvested, fit_adapters, fit_gates
from .network import Gates, places_of
from .state import load, save

if TYPE_CHECKING:
    from .train import Run


def load_harvested(run: Run, where: Sequence[int | GatePlace]) -> Harvested:
    places = places_of(where)
    picks = [run.candidates.index(place) for place in places]
    chunks = []
    for path in sorted((run.state / "chunks").glob("*.pt")):
        found = load(path, mmap=True)
        chunks.append(Harvest(**{name: value[picks].to(torch.get_default_device()) for name, value in found.items()}))
    read = ["ffn_norm" if place.scope == "ffn" else "attn_norm" for place in places]
    norms = {"attn_norm": read, "ffn_norm": ["ffn_norm"] * len(places)}
    at = lambda names: [run.base.layers[place.layer][name] for place, name in zip(places, names, strict=True)]  # noqa: E731
    return Harvested(
        chunks, {name: torch.stack(at(names))[:, None] for name, names in norms.items()}, run.base.shape.state_eps
    )


def fit_local(run: Run) -> None:
    """Stage `local`: adapters (for all tokens, then for those that would skip), gates, the layers worth a gate."""
    o, path = run.options, run.state / "local.pt"
    if path.exists():
        return
    if run.initial and not o.harvest_tokens:
        save(_kept(run.initial, []), path)
        return
    data = load_harvested(run, run.candidates)
    gates = copy.deepcopy(run.initial) or Gates(run.candidates, run.base.shape.n_embd, o.adapter_size, o.seed)
    rows, held_out = _split(data)
    n_gates = len(run.candidates) if run.initial else o.kept(len(run.candidates))
    tell = lambda what, total: lambda epoch, _: run.tell(epoch + 1, total, what)  # noqa: E731
    if not run.initial and o.adapter_size:
        told = tell("adapters, all tokens", o.epochs)
        fit_adapters(gates, data, rows, epochs=o.epochs, lr=o.local_lr, seed=o.seed, report=told)
    price_gates(run, data, gates)
    level, _ = skip_level(data, gates, o.target, n_gates, run.base.shape.n_layer, run.worth(gates))
    weight = (level - logits(data, gates)).mul_(1.5).sigmoid_().add_(0.05)
    epochs, lr = max(2, o.epochs // 2), o.local_lr / (5 if run.initial else 2)
    told = tell("adapters, tokens that skip", epochs)
    if o.adapter_size:
        fit_adapters(gates, data, rows, epochs=epochs, lr=lr, weight=weight, seed=o.seed + 1, report=told)
        price_gates(run, data, gates)
    level, kept = skip_level(data, gates, o.target, n_gates, run.base.shape.n_layer, run.worth(gates))
    figures = _local_figures(data, gates, held_out, level, kept)
    with torch.no_grad():
        gates.bias.sub_(level)
    save(_kept(gates.subset(kept), figures), path)


def _kept(gates: Gates, figures: list[dict]) -> dict:
    return {"gates": gates.state_dict(), "places": [asdict(place) for place in gates.places], "figures": figures}


def _split(data: Harvested) -> tuple[slice, slice]:
    cut = int(data.n_rows * 0.9)
    return slice(0, cut), slice(cut, data.n_rows)


def price_gates(run: Run, data: Harvested, gates: Gates) -> None:
    """Logits: the logarithm of what a skip costs, per layer that it saves."""
    fit_gates(gates, data, gates_cost(data, gates), prior=run.prior)
    with torch.no_grad():
        gates.bias.sub_(run.worth(gates).log())


def gates_cost(data: Harvested, gates: Gates) -> Tensor:
    return data.cost(gates, slice(0, data.n_rows))


def logits(data: Harvested, gates: Gates) -> Tensor:  # [L, N]
    with torch.no_grad():
        parts = [
            torch.bmm(data.input("attn_norm", slice(i, i + 2048)), gates.weight[:, :, None])[:, :, 0]
            for i in range(0, data.n_rows, 2048)
        ]
        return torch.cat(parts, 1) + gates.bias[:, None]


def skip_level(
    data: Harvested,
    gates: Gates,
    target: float,
    n_gates: int,
    n_layer: int | None = None,
    worth: Tensor | None = None,
) -> tuple[float, list[GatePlace]]:
    """The logit below which tokens skip so that `target` is met by `n_gates` places, and those: the ones that skip most
    where all of them share the work.

    `worth` [n_gate]: layers that each gate switches, 1 if None; `n_layer`: of the base.
    """
    worth = torch.ones(len(gates.places)) if worth is None else worth
    z, wanted = logits(data, gates), (1 - target) * (n_layer or max(gates.layers) + 3)  # [L, N], layers a token
    saved = (z < _level(z, worth, wanted)).float().mean(1) * worth
    kept = sorted(saved.argsort(descending=True)[:n_gates].tolist())
    return _level(z[kept], worth[kept], wanted), [gates.places[i] for i in kept]


def _level(z: Tensor, worth: Tensor, wanted: float) -> float:
    """Below it lie (token, gate) pairs of `wanted` layers a token."""
    order = z.flatten().argsort()
    saved = worth[:, None].expand_as(z).flatten()[order].cumsum(0) / z.shape[1]
    at = int((saved < wanted).sum())
    return float(z.flatten()[order[min(at, len(order) - 1)]])


def _local_figures(data: Harvested, gates: Gates, rows: slice, level: float, kept: list[GatePlace]) -> list[dict]:
    """Per place, on rows the adapters never saw: cost of skipping every token, none, and the tokens the gate picks."""
    with_adapter, bare, z = data.cost(gates, rows), data.cost(None, rows), logits(data, gates)[:, rows]
    figures = []
    for i, place in enumerate(gates.places):
        picked = z[i] < level
        chosen = float(with_adapter[i][picked].mean()) if picked.any() else math.nan
        figures.append(
            {
                "layer": place.layer,
                "span": place.span,
                "scope": place.scope,
                "kept": place in kept,
                "skip_share": round(float(picked.float().mean()), 4),
                "cost_bare": round(float(bare[i].mean()), 5),
                "cost": round(float(with_adapter[i].mean()), 5),
                "cost_of_skipped": None if math.isnan(chosen) else round(chosen, 5),
            }
        )
    return figures


def load_local(run: Run) -> tuple[Gates, list[dict]]:
    kept = load(run.state / "local.pt")
    places = [GatePlace(**place) for place in kept["places"]]
    gates = Gates(places, run.base.shape.n_embd, kept["gates"]["skip_gate"].shape[2])
    gates.load_state_dict(kept["gates"])
    return gates, kept["figures"]
