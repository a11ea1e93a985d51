"""What a training run is asked for, and where its gates may sit. Imports no PyTorch.

Knows the names of the command line. Trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UsageError
from ...gate_layout import KV_POLICIES, SCOPES, GatePlace

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")
N_GATES = 12  # where no number is asked for, and there are as many candidates
FROM_INIT = ("layers", "n_gates", "adapter_size", "span", "scope")  # a pack to go on from says these itself
_AT_LEAST = {
    "valid_rows": 1, "balance": 0, "always_run_tokens": 0, "harvest_tokens": 0, "epochs": 1,
    "tune_tokens": 0, "batch_tokens": 1, "n_ctx": 1, "seed": 0, "rank": 0, "vocab_sample": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a run is asked for; names as on the command line."""

    data: tuple[str, ...] = ("self:60000",)
    valid: tuple[str, ...] = ()  # biases, threshold and calibration are chosen on these
    valid_rows: int = 8  # of each
    balance: int = 1  # rounds of balancing the biases on them
    init: str = ""  # a pack to go on from
    target: float = 0.93
    layers: tuple[int, ...] = ()  # candidates; empty: all but the first two and the last two
    n_gates: int | None = None  # how many of the candidates are kept; None: N_GATES, or all where there are fewer
    adapter_size: int = 64  # 0: a skip leaves the state as it is
    always_run_tokens: int = 4
    harvest_tokens: int = 30000  # 0: the gates of `init` are not priced anew
    epochs: int = 10
    tune_tokens: int = 80000
    batch_tokens: int = 512  # of one step of the second stage, at least
    lr: float = 1e-3  # of the second stage
    gate_lr: float = 0.0
    local_lr: float = 5e-3
    n_ctx: int = 512
    seed: int = 1
    threads: int | None = None
    kv: str = ""  # of KV_POLICIES; "": as in `init`, else the first
    span: int = 1
    scope: str = "layer"
    rank: int = 0
    device: str = "auto"
    precision: str = "float32"  # of the second stage's matrix products; gates, norms and the head stay float32
    vocab_sample: int = 0  # words drawn for each step of the second stage, beside those in the texts; 0: all words

    def check(self) -> None:
        """UsageError for what cannot be trained."""
        words = {"kv": ("", *KV_POLICIES), "scope": tuple(SCOPES), "device": DEVICES, "precision": PRECISIONS}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                expected = ", ".join(word for word in allowed if word)
                raise UsageError(f"--{name} {getattr(self, name)}: one of {expected} was expected")
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise UsageError(f"{_flag(name)} {getattr(self, name)}: {least} or more was expected")
        if self.n_gates is not None and self.n_gates < 1:
            raise UsageError(f"--n-gates {self.n_gates}: 1 or more was expected")
        for name in ("lr", "local_lr", "gate_lr"):
            rate = getattr(self, name)
            if not (0 < rate < math.inf or (name == "gate_lr" and rate == 0)):
                also = "0 or " if name == "gate_lr" else ""
                raise UsageError(f"{_flag(name)} {rate}: {also}a learning rate above 0 was expected")
        if self.always_run_tokens >= self.n_ctx:
            raise UsageError(f"--always-run-tokens {self.always_run_tokens}: less than a row of {self.n_ctx} tokens")
        if self.init and (said := [name for name in FROM_INIT if getattr(self, name) != getattr(Options, name)]):
            raise UsageError(f"--init brings its own gates: {_flag(said[0])} says nothing beside it")
        if not 0.3 <= self.target < 1:
            raise UsageError(f"--target {self.target:.0%}: a share between 30% and 99% was expected")
        if self.adapter_size % 32 or self.adapter_size < 0:
            raise UsageError(f"--adapter-size {self.adapter_size}: a multiple of 32 was expected, or 0")
        if self.span < 1 or (self.span > 1 and self.scope != "layer"):
            raise UsageError(f"--span {self.span}: 1 was expected, or more with --scope layer")
        if not self.harvest_tokens and not (self.init and self.gate_lr):
            raise UsageError("--harvest-tokens 0 prices no gates: --init and a --gate-lr above 0 train a pack's")
        if self.rank and not self.tune_tokens:
            raise UsageError("--rank: updates are trained by --tune-tokens, which is 0")

    def places(self, n_layer: int) -> list[GatePlace]:
        """The candidates. Spans tile the layers asked for, from the first one on."""
        layers = list(self.layers) or list(range(2, n_layer - 2))
        if not layers or min(layers) < 1 or max(layers) >= n_layer:
            raise UsageError(
                f"--layers {layers_text(layers)}: layers from 1 to {n_layer - 1} were expected; the first always runs"
            )
        found, free_from = [], 0
        for layer in sorted(layers):
            if layer >= free_from and all(layer + i in layers for i in range(self.span)):
                found += [GatePlace(layer, self.span, scope, False) for scope in SCOPES[self.scope]]
                free_from = layer + self.span
        if not found:
            raise UsageError(f"--layers: no {self.span} layers in a row were among them, --span {self.span} needs that")
        if self.n_gates and self.n_gates > len(found):
            raise UsageError(
                f"--n-gates {self.n_gates}: at most {len(found)} was expected, as many as there are candidates",
                hint="a smaller --n-gates, or more --layers",
            )
        return found

    def kept(self, n_places: int) -> int:
        """How many of so many candidates are kept."""
        return self.n_gates or min(N_GATES, n_places)


def layers_text(layers: Iterable[int]) -> str:
    """Layers as --layers takes them: `8-11,25`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
