"""One benchmark case: a shape, its gates, which of them skip; the model files that it needs.

Knows file names, disk and memory needed, and how gates are forced through their biases. Knows nothing of timing.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from random_model import Progress, set_biases, write_model
from shapes import Gates, Shape, Type, tensors

from liquidcli.errors import UsageError
from liquidcli.files import check_space

if TYPE_CHECKING:
    from liquidcli.runtime.engine import Engine

FORCED = 100.0  # a bias that no gate logit of a normed state outweighs
_CALIBRATION_TOKENS = 512
_CALIBRATION_BATCH = 8
_CALIBRATION_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """`skipped` layers are skipped by every token; or each gate skips a token with probability `skip_rate`."""

    shape: Shape
    gates: Gates
    skipped: tuple[int, ...] = ()
    skip_rate: float | None = None

    @property
    def label(self) -> str:
        n = self.shape.n_layer
        if self.skip_rate is not None:
            return f"{len(self.gates.layers)} of {n} gated, {self.skip_rate:.0%} of tokens each"
        return f"{len(self.skipped)} of {n} skipped"

    @property
    def expected_fraction(self) -> float:
        skipped = len(self.skipped) if self.skip_rate is None else len(self.gates.layers) * self.skip_rate
        return 1 - skipped / self.shape.n_layer

    def run_rate(self, executed_fraction: float) -> dict[int, float]:
        """Share of tokens for which each gated layer ran; per-token rates are spread evenly over the gated layers."""
        if self.skip_rate is None:
            return {layer: float(layer not in self.skipped) for layer in self.gates.layers}
        skips = (1 - executed_fraction) * self.shape.n_layer / len(self.gates.layers)
        return dict.fromkeys(self.gates.layers, 1 - skips)


def gated_layers(shape: Shape, wanted: str) -> tuple[int, ...]:
    """`upper` half, `all`, or a list."""
    if wanted in ("upper", "all"):
        return tuple(range(shape.n_layer // 2 if wanted == "upper" else 0, shape.n_layer))
    return _layers(wanted, shape)


def skipped_layers(shape: Shape, gated: Sequence[int], wanted: str) -> tuple[int, ...]:
    """A count N: the last gated layer and N - 1 more, spread evenly over the gated ones; or a list with a comma."""
    if "," in wanted:
        layers = _layers(wanted, shape)
        if missing := set(layers) - set(gated):
            raise UsageError(f"layers {sorted(missing)} have no gate, so they cannot be skipped", hint="--gated all")
        return layers
    n = _number(wanted)
    if not 0 <= n <= len(gated):
        raise UsageError(f"{n} layers are to be skipped and {len(gated)} have a gate", hint="--gated all")
    ends = np.linspace(len(gated), 0, n, endpoint=False)
    return tuple(sorted(gated[math.ceil(end) - 1] for end in ends))


def _layers(text: str, shape: Shape) -> tuple[int, ...]:
    layers = tuple(sorted({_number(part) for part in text.split(",") if part.strip()}))
    if layers and not 0 <= layers[0] <= layers[-1] < shape.n_layer:
        raise UsageError(f"{shape.name} has layers 0 to {shape.n_layer - 1}, {text} names others")
    return layers


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{text!r} is no number of layers and no list of layers") from None


@dataclass(frozen=True)
class Files:
    """Where the models of a case lie; they are made on demand."""

    folder: Path
    shape: Shape
    body: Type
    head: Type
    seed: int

    def path(self, gates: Gates | None) -> Path:
        parts = [self.shape.name, self.body.name, self.head.name, f"seed{self.seed}"]
        if gates:
            layers = f"gates{len(gates.layers)}x{zlib.crc32(repr(gates.layers).encode()):08x}"
            parts += [gates.kind, f"r{gates.rank}", f"m{gates.adapter}", "scaled" if gates.scaled else "plain", layers]
            parts += [gates.kv_policy] if gates.kv_policy != "project" else []
        return self.folder / ("-".join(parts) + (".liquid" if gates else ".llama") + ".gguf")

    def size_bytes(self, gates: Gates | None) -> int:
        return sum(tensor.size_bytes for tensor in tensors(self.shape, self.body, self.head, gates))

    def make(self, gates: Gates | None, progress: Progress | None = None) -> tuple[Path, bool]:
        """The file, and whether it had to be written."""
        path = self.path(gates)
        if path.exists():
            return path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, self.size_bytes(gates))
        write_model(path, self.shape, body=self.body, head=self.head, gates=gates, seed=self.seed, progress=progress)
        return path, True


def cache_folder() -> Path:
    """Where models go that are written for a run."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "liquid-benchmarks"


def force_gates(path: Path, case: Case, open_engine: Callable[[Path], Engine]) -> None:
    """Set the biases in the file so that its gates decide as the case says."""
    if case.skip_rate is None:
        set_biases(path, {layer: -FORCED if layer in case.skipped else FORCED for layer in case.gates.layers})
    else:
        _calibrate(path, case, open_engine)


def _calibrate(path: Path, case: Case, open_engine: Callable[[Path], Engine]) -> None:
    """Move each bias to the quantile of its gate's logits; skipping changes the logits further up, hence the rounds."""
    tokens = np.random.default_rng(7).integers(3, case.shape.n_vocab, _CALIBRATION_TOKENS, np.int32)
    biases = dict.fromkeys(case.gates.layers, 0.0)
    set_biases(path, biases)
    for _ in range(_CALIBRATION_ROUNDS):
        with open_engine(path) as engine:
            w = np.clip(gate_weights(engine, tokens), 1e-7, 1 - 1e-7)  # [n_tokens, n_gate]
        z = np.log(w / (1 - w))
        for i, layer in enumerate(case.gates.layers):
            biases[layer] -= float(np.quantile(z[:, i], case.skip_rate))
        set_biases(path, biases)


def gate_weights(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """w of every gate for every token, as short sequences like those that are timed."""
    rows = []
    engine.set_trace(True)
    for at in range(0, len(tokens), _CALIBRATION_BATCH):
        engine.clear()
        engine.decode(tokens[at : at + _CALIBRATION_BATCH], logits="last")
        rows.append(engine.trace().w)
    return np.concatenate(rows)
