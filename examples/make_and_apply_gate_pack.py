#!/usr/bin/env python3
"""Make a gate pack by hand, apply it to a model, and see what skipping costs.

    python examples/make_and_apply_gate_pack.py
    python examples/make_and_apply_gate_pack.py --base my-llama.gguf --skip 0.3 --out gated.gguf

The gates are random directions whose biases are set so that each skips a given share of tokens. They have learned
nothing (`liquid gates train` makes gates that have), so this is what skipping costs at its worst. It shows what a pack
is made of: where the gates are, their tensors, a calibration (threshold to share of layers) and the base's identity.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from liquidcli.errors import LiquidError
from liquidcli.gates.apply import apply_pack
from liquidcli.gates.identity import base_identity
from liquidcli.gates.pack import Depth, Pack, write_pack
from liquidcli.gguf_file import open_gguf
from liquidcli.hub.default_model import ALIAS
from liquidcli.hub.resolve import resolve_model
from liquidcli.runtime.bench import BUNDLED_TEXT
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.perplexity import measure
from liquidcli.ui.console import out

TEXT = BUNDLED_TEXT.read_text("utf-8")
N_CALIBRATION_TOKENS = 384


def make_pack(base: Path, biases: dict[int, float], calibration: dict[float, float]) -> Pack:
    """Linear gates at the layers of `biases`, one random direction each."""
    with open_gguf(base) as f:
        identity = base_identity(f)
    tensors = {}
    for layer, bias in biases.items():
        direction = np.random.default_rng(layer).standard_normal(identity.embedding_length)
        tensors[f"blk.{layer}.depth_gate.weight"] = (direction / np.linalg.norm(direction)).astype(np.float32)
        tensors[f"blk.{layer}.depth_gate.bias"] = np.array([bias], np.float32)
    depth = Depth(
        gate_span=tuple(int(layer in biases) for layer in range(identity.block_count)),
        always_run_tokens=1,  # the first position carries more than any other
        calibration_threshold=tuple(calibration),
        calibration_executed_fraction=tuple(calibration.values()),
    )
    return Pack(identity, depth, tensors, name="random gates")


def gate_logits(model: Path) -> np.ndarray:
    """What each gate says before its sigmoid, over a text: [n_tokens, n_gates]."""
    with Engine.load(model, n_ctx=N_CALIBRATION_TOKENS) as engine:
        engine.set_trace(True)
        engine.decode(engine.tokenize(TEXT)[:N_CALIBRATION_TOKENS])
        w = np.clip(engine.trace().w[1:], 1e-6, 1 - 1e-6)
    return np.log(w / (1 - w))


def calibrate(z: np.ndarray, n_layer: int) -> dict[float, float]:
    """Threshold -> share of the layers that run."""
    w = 1 / (1 + np.exp(-z))
    return {tau: float(1 - (w <= tau).mean() * z.shape[1] / n_layer) for tau in (0.3, 0.4, 0.5, 0.6, 0.7)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=ALIAS, help="a model without gates (default: the default model's base)")
    parser.add_argument("--skip", type=float, default=0.25, help="share of tokens that each gate skips")
    parser.add_argument("--ctx-size", type=int, default=256, help="window for the perplexity")
    parser.add_argument("--out", type=Path, default=None, help="keep the model here (default: it is thrown away)")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run(options, Path(folder))
    except LiquidError as error:
        out.error(error)
        return error.exit_code
    return 0


def run(options: argparse.Namespace, folder: Path) -> None:
    base = resolve_model(options.base).path
    with open_gguf(base) as f:
        n_layer = f.block_count
    layers = range(n_layer // 2, n_layer - 1)[:6]
    pack, model = folder / "gates.gguf", options.out or folder / "gated.gguf"
    write_pack(pack, make_pack(base, dict.fromkeys(layers, 0.0), {}))
    apply_pack(base, pack, model)
    z = gate_logits(model)
    biases = -np.quantile(z, options.skip, axis=0)  # z + bias <= 0 for the wanted share of tokens
    calibration = calibrate(z + biases, n_layer)
    write_pack(pack, make_pack(base, dict(zip(layers, biases.tolist(), strict=True)), calibration))
    apply_pack(base, pack, model)
    out.data(f"gates at layers {layers[0]} to {layers[-1]} of {n_layer}, a pack of {pack.stat().st_size} bytes")
    depths = [DepthPolicy.parse(word) for word in ("full", "auto", "tau=0.6")]
    for found in measure(model, TEXT, depths, options.ctx_size, 4, 4 * options.ctx_size):
        result = found.as_json()
        share = result["depth"]["executed_fraction"]
        out.data(f"depth {found.policy!s:8} {share:6.1%} of the layers ran, perplexity {result['ppl']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
