"""From trained gates to a pack: biases balanced, the threshold met, the dial calibrated, all on held-out text.

Knows what a pack and its report hold. Knows nothing of how gates and adapters are trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import UsageError
from ...gguf_file import open_gguf
from ..identity import base_identity
from ..pack import Depth, Pack, check_belongs, read_pack, write_pack
from .balance import balance, prices
from .base import base_units
from .data import Row, Source, documents, own_answers
from .judge import Judge, calibrate
from .network import Gates, Network
from .units import Units
from .vocab import Vocabulary

SHORTEST = 64  # tokens of a row to calibrate on
_TENSORS = ("skip_gate", "skip_up", "skip_down")


def held_out_rows(
    valid: list[Source], vocab: Vocabulary, own: dict[str, Path], n_ctx: int, n_each: int
) -> dict[str, list[Row]]:
    """By kind: rows spread over each `valid` file, and the held-out tenth of each kind of the base's `own` answers.

    UsageError for a file too short for any row.
    """
    found = {}
    names = Counter(Path(source.name).name for source in valid)
    for source in valid:
        rows = documents(source, vocab)
        if not source.holds_rows:
            rows = _cut(rows[0].tokens, vocab.opening(), n_ctx, n_each)
        if not (rows := spread(rows, n_each, n_ctx)):
            what = f"no row of {SHORTEST} tokens, or no answer within {n_ctx}, to calibrate on"
            raise UsageError(f"--valid {source.name} holds {what}")
        short = Path(source.name).name
        found[short if names[short] == 1 else source.name] = rows
    for name, path in own.items():
        if rows := spread(own_answers(path, vocab, held_out=True), n_each, n_ctx):
            found[name] = rows
    return found


def _cut(tokens: list[int], head: list[int], n_ctx: int, n: int) -> list[Row]:
    """About `n` rows of one long text, evenly spaced; the whole of a short one."""
    step = max(n_ctx, (len(tokens) - n_ctx) // n)
    return [Row([*head, *tokens[i : i + n_ctx]][:n_ctx]) for i in range(0, max(1, len(tokens) - n_ctx), step)]


def spread(rows: list[Row], n: int, n_ctx: int) -> list[Row]:
    """`n` of the rows that are long enough and have something to score, evenly spaced."""
    fit = [row for row in rows if len(row.tokens) >= min(SHORTEST, n_ctx) and row.teaches(n_ctx)]
    n = min(n, len(fit))
    return [Row(row.tokens[:n_ctx], row.n_prompt) for row in (fit[i * len(fit) // n] for i in range(n))]


def read_gates(path: Path, network: Network) -> Gates:
    """The gates and adapters of a pack to go on from; its threshold becomes 0.5."""
    pack = read_pack(path)
    places, lora = list(pack.depth.layout.gates()), bool(pack.lora)
    adapted = [f"blk.{place.layer}.depth_skip_gate.weight" for place in places if place.may_adapt]
    adapted = adapted if any(name in pack.tensors for name in adapted) else []
    plain = all(name in pack.tensors for name in adapted) and not any(place.is_exit for place in places)
    scaled = pack.depth.ffn_scaled_by_gate or pack.depth.adapter_scaled_by_gate
    if pack.depth.gate_kind != "linear" or not plain or lora or scaled or pack.depth.min_layers:
        raise UsageError(
            f"{path}: training goes on from linear gates that scale nothing, all with adapters or none, without exits, "
            "least layers and low-rank updates"
        )
    if not 0 < pack.depth.threshold < 1:
        raise UsageError(f"{path}: training goes on from a threshold between 0 and 1, not {pack.depth.threshold:g}")
    with open_gguf(network.base.path) as f:
        check_belongs(pack, f)
    adapter_size = len(pack.tensors[adapted[0]]) if adapted else 0
    gates = Gates(places, network.shape.n_embd, adapter_size)
    shift = torch.logit(torch.tensor(pack.depth.threshold))
    with torch.no_grad():
        for i, place in enumerate(places):
            get = lambda name, layer=place.layer: _read(pack, f"blk.{layer}.{name}", network.base.units)  # noqa: E731
            has_bias = f"blk.{place.layer}.{place.stem}.bias" in pack.tensors
            gates.weight[i] = get(f"{place.stem}.weight")
            gates.bias[i] = (get(f"{place.stem}.bias")[0] if has_bias else 0.0) - shift
            for name in _TENSORS if place.may_adapt and adapter_size else ():
                getattr(gates, name)[i] = get(f"depth_{name}.weight").T
    return gates


def _read(pack: Pack, name: str, units: Units) -> torch.Tensor:
    return torch.from_numpy(pack.tensors[name]) * units.trained(name)


def write_gates(
    base: Path,
    out: Path,
    gates: Gates,
    *,
    n_layer: int,
    always_run_tokens: int,
    pairs: list[tuple[float, float]],
    kv: str = "project",
) -> None:
    """The pack of `gates` at threshold 0.5 with the calibration `pairs`."""
    spans = {place.layer: place.span for place in gates.places}
    scopes = {layer: "+".join(sorted(gates.at(layer))) for layer in spans}
    depth = Depth(
        gate_span=tuple(spans.get(i, 0) for i in range(n_layer)),
        gate_scope=tuple(scopes.get(i, "layer") for i in range(n_layer)) if set(scopes.values()) - {"layer"} else None,
        threshold=0.5,
        kv_policy=kv,
        always_run_tokens=always_run_tokens,
        calibration_threshold=tuple(t for t, _ in pairs),
        calibration_executed_fraction=tuple(s for _, s in pairs),
    )
    with open_gguf(base) as f:
        name = f"depth gates for {f.metadata.get('general.name', base.stem)}"
        write_pack(out, Pack(base_identity(f), depth, _tensors(gates, base_units(f)), name))


def _tensors(gates: Gates, units: Units) -> dict[str, np.ndarray]:
    """As they fit the file."""
    found = {}
    for i, place in enumerate(gates.places):
        found[f"blk.{place.layer}.{place.stem}.weight"] = gates.weight[i]
        found[f"blk.{place.layer}.{place.stem}.bias"] = gates.bias[i : i + 1]
        if place.may_adapt and gates.skip_gate.shape[2]:
            found |= {f"blk.{place.layer}.depth_{name}.weight": getattr(gates, name)[i].T for name in _TENSORS}
    for key, update in gates.updates.items():
        layer, name, side = key.split("/")
        found[f"blk.{layer}.{name}.weight.lora_{side}"] = update
    return {name: tensor.detach().cpu().numpy() / np.float32(units.trained(name)) for name, tensor in found.items()}


def finish(
    gates: Gates, kinds: dict[str, Judge], target: float, balance_rounds: int, tell: Callable[[int, int, str], None]
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Balance the biases, calibrate, put the threshold for `target` at 0.5; what was found, and the calibration."""
    mixture = Judge.joined(kinds.values())
    told = lambda done, total: tell(done, total, "opening one gate at a time")  # noqa: E731
    rounds = []
    for _ in range(balance_rounds):
        found = prices(mixture, gates, tell=told)
        rounds.append(
            [
                {"layer": one.layer, "kl": round(one.kl, 6), "skipped": round(one.skipped, 5), "move": round(move, 4)}
                for one, move in zip(found, balance(gates, found), strict=True)
            ]
        )
    pairs = recentre(gates, calibrate(mixture, gates, tell=tell), target)
    return {
        "balance": rounds,
        "held_out": {name: judge.score(gates).as_json() for name, judge in kinds.items()},
        "calibration": [{"threshold": t, "executed_fraction": round(s, 5)} for t, s in pairs],
    }, pairs


def recentre(gates: Gates, pairs: list[tuple[float, float]], target: float) -> list[tuple[float, float]]:
    """Shift the biases so that `target` is met at 0.5, by interpolation; the same pairs, their thresholds shifted."""
    z, shares = torch.logit(torch.tensor([t for t, _ in pairs])), [s for _, s in pairs]
    level = float(np.interp(target, shares[::-1], z.tolist()[::-1]))
    with torch.no_grad():
        gates.bias.sub_(level)
    return list(zip(torch.sigmoid(z - level).tolist(), shares, strict=True))
