"""From trained gates to a pack: biases balanced, the threshold met, the dial calibrated, all on held-out text.

Knows what a pack and its report hold. Knows nothing of how gates and adapters are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..gguf_file import open_gguf
from .balance import balance, prices
from .data import Row, Source, documents, own_answers
from .identity import base_identity
from .judge import Judge, calibrate
from .network import Gates, Network
from .pack import Depth, Pack, read_pack, write_pack
from .vocab import Vocabulary

_TENSORS = ("skip_gate", "skip_up", "skip_down")


def held_out_rows(valid: list[Source], vocab: Vocabulary, own: Path, n_ctx: int, n_each: int) -> dict[str, list[Row]]:
    """By kind: rows spread over each `valid` file, and the held-out tenth of the base's own answers."""
    found = {}
    for source in valid:
        rows = documents(source, vocab, own)
        if len(rows) == 1:
            tokens = rows[0].tokens
            step = max(n_ctx, (len(tokens) - n_ctx) // n_each)
            rows = [Row(tokens[i : i + n_ctx]) for i in range(0, len(tokens) - n_ctx, step)]
        found[source.path.name if source.path else "self"] = spread(rows, n_each, n_ctx)
    if own.exists():
        found["self"] = spread(own_answers(own, vocab, held_out=True), n_each, n_ctx)
    return {name: rows for name, rows in found.items() if rows}


def spread(rows: list[Row], n: int, n_ctx: int, *, shortest: int = 64) -> list[Row]:
    """`n` of the rows that are long enough, evenly spaced."""
    fit = [Row(row.tokens[:n_ctx], row.n_prompt) for row in rows if len(row.tokens) >= shortest]
    return fit[:: max(1, len(fit) // n)][:n]


def read_gates(path: Path, network: Network) -> Gates:
    """The gates and adapters of a pack to go on from; its threshold becomes 0.5."""
    pack = read_pack(path)
    layers = list(pack.depth.layers)
    adapters = [pack.tensors.get(f"blk.{layer}.depth_skip_gate.weight") for layer in layers]
    if pack.depth.gate_kind != "linear" or any(adapter is None for adapter in adapters):
        raise UsageError(f"{path}: only linear gates with adapters can be trained on")
    if pack.base.embedding_length != network.shape.n_embd or pack.base.block_count != network.shape.n_layer:
        raise UsageError(f"{path} was made for another base")
    adapter_size = len(pack.tensors[f"blk.{layers[0]}.depth_skip_gate.weight"])
    gates = Gates(layers, network.shape.n_embd, adapter_size)
    shift = torch.logit(torch.tensor(pack.depth.threshold))
    with torch.no_grad():
        for i, layer in enumerate(layers):
            get = lambda name, layer=layer: torch.from_numpy(pack.tensors[f"blk.{layer}.depth_{name}"])  # noqa: E731
            gates.weight[i], gates.bias[i] = get("gate.weight"), get("gate.bias")[0] - shift
            for name in _TENSORS:
                getattr(gates, name)[i] = get(f"{name}.weight").T
    return gates


def write_gates(
    base: Path, out: Path, gates: Gates, *, n_layer: int, always_run_tokens: int, pairs: list[tuple[float, float]]
) -> None:
    """The pack of `gates` at threshold 0.5 with the calibration `pairs`."""
    depth = Depth(
        gate_span=tuple(int(i in gates.layers) for i in range(n_layer)),
        threshold=0.5,
        always_run_tokens=always_run_tokens,
        calibration_threshold=tuple(t for t, _ in pairs),
        calibration_executed_fraction=tuple(s for _, s in pairs),
    )
    tensors = {}
    for i, layer in enumerate(gates.layers):
        tensors[f"blk.{layer}.depth_gate.weight"] = gates.weight[i].detach().numpy()
        tensors[f"blk.{layer}.depth_gate.bias"] = gates.bias[i : i + 1].detach().numpy()
        for name in _TENSORS:
            tensors[f"blk.{layer}.depth_{name}.weight"] = getattr(gates, name)[i].detach().numpy().T
    with open_gguf(base) as f:
        name = f"depth gates for {f.metadata.get('general.name', base.stem)}"
        write_pack(out, Pack(base_identity(f), depth, tensors, name))


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
    pairs = recentre(gates, calibrate(mixture, gates), target)
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
