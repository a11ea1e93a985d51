"""Models of the benchmark maker's smallest shape, with a byte tokenizer: a liquid one, its llama twin, others.

Knows which layers skip: of the gates on layers 4 to 7, layer 4 always runs, 5 never, 6 and 7 as the token has it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gguf import GGUFValueType
from random_model import set_biases, write_model
from shapes import SHAPES, Gates

from liquidcli.gates import container
from liquidcli.gguf_file import open_gguf

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TEXT = Path(__file__).parent / "data/lincoln.txt"
GATED = (4, 5, 6, 7)


def gated(folder: Path, shape: str = "tiny", **gates: object) -> Path:
    path = write_model(folder / f"{shape}-gated.gguf", SHAPES[shape], gates=Gates(GATED, **{"adapter": 32, **gates}))
    set_biases(path, {4: 100.0, 5: -100.0, 6: 0.0, 7: 0.0})
    return path


def calibrated(folder: Path, gated: Path, thresholds: tuple[float, ...], shares: tuple[float, ...]) -> Path:
    """The same model with a depth calibration."""
    path = folder / f"{gated.stem}-calibrated.gguf"
    with open_gguf(gated) as f, path.open("wb") as file:
        keys = {key: f.raw_value(key) for key in f.metadata}
        for name, values in (("threshold", thresholds), ("executed_fraction", shares)):
            keys[f"liquid.depth.calibration.{name}"] = container.array(GGUFValueType.FLOAT32, values)
        tensors = [
            container.Tensor(name, info.shape, info.type, info.size_bytes, lambda name=name: f.raw(name))
            for name, info in f.tensors.items()
        ]
        container.write(file, keys, tensors, f.alignment)
    return path


def stock(folder: Path, shape: str = "tiny", seed: int = 1) -> Path:
    """The llama twin for seed 1; another seed is another model of the same vocabulary."""
    return write_model(folder / f"{shape}-stock-{seed}.gguf", SHAPES[shape], seed=seed)


def other_vocabulary(folder: Path) -> Path:
    return write_model(folder / "other-vocabulary.gguf", replace(SHAPES["tiny"], n_vocab=512))
