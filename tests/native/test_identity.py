"""What must not differ at all: `full` and the stock architecture; the patched and the unpatched library."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from random_model import BODY_TYPES, write_model
from shapes import SHAPES, Gates

from liquidcli.hub import default_model

PROBE = Path(__file__).with_name("logits_digest.py")
DENSE = Gates((0, 3, 7), adapter=32)


def digest(model: Path, *words: str, library: str | None = None) -> str:
    environment = dict(os.environ)
    if library:
        environment["LLAMA_CPP_LIB_PATH"] = library
    done = subprocess.run(
        [sys.executable, PROBE, model, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("kind", BODY_TYPES, ids=lambda kind: kind.name)
def test_full_depth_is_the_stock_architecture(kind, tmp_path):
    liquid = write_model(tmp_path / "liquid.gguf", SHAPES["tiny"], body=kind, gates=DENSE)
    llama = write_model(tmp_path / "llama.gguf", SHAPES["tiny"], body=kind)
    assert digest(liquid, "full") == digest(llama)


def test_full_depth_is_the_stock_architecture_where_kv_is_dropped(tmp_path):
    liquid = write_model(tmp_path / "liquid.gguf", SHAPES["tiny"], gates=replace(DENSE, kv_policy="drop"))
    llama = write_model(tmp_path / "llama.gguf", SHAPES["tiny"])
    assert digest(liquid, "full") == digest(llama)


def test_full_depth_is_the_stock_architecture_with_experts(tmp_path):
    liquid = write_model(tmp_path / "liquid.gguf", SHAPES["tiny-moe"], gates=Gates((1, 2)))
    llama = write_model(tmp_path / "llama.gguf", SHAPES["tiny-moe"])
    assert digest(liquid, "full") == digest(llama)


def test_the_digest_sees_the_gates(tmp_path):
    liquid = write_model(tmp_path / "liquid.gguf", SHAPES["tiny"], gates=DENSE)
    assert digest(liquid) != digest(liquid, "full")


@pytest.mark.oracle
@pytest.mark.parametrize("shape", ["tiny", "tiny-moe", "smollm2"])
def test_stock_architectures_are_untouched(shape, tmp_path):
    unpatched = os.environ["LIQUID_ORACLE_DIR"]
    model = default_model.fetch() if shape == "smollm2" else write_model(tmp_path / "m.gguf", SHAPES[shape])
    assert digest(model) == digest(model, library=unpatched)
