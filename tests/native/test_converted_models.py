"""Converted checkpoints in the patched library: folded gates and expert stacks compute what the reference computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from tests.hf_folders import CONFIG, llama_tensors, safetensors_bytes, write_json, write_llama
from tests.native.parity import Comparison, NativeModel, Setting, compare, reference_rows
from tests.tiny import make_model, random_tokens, save_checkpoint

LOGITS = 1e-3  # max |difference| / max |reference|
SETTING = Setting("mixed")


FAMILIES = ["bottleneck", "span3-scaled", "flexidepth", "moe-sigmoid-shared", "llama4", "qk-full-norm"]
FAMILIES += ["every-scope", "exit-around-scaled", "moe-attn-ffn-shared"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_agrees_with_the_reference(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    plan = converters.plan(save_checkpoint(model, tmp_path / "m"), "f32")
    native = NativeModel(converters.run(plan, tmp_path / "m.gguf").output)
    tokens = random_tokens(model.config, 4, 48)
    found = Comparison(family, SETTING)
    compare(native.run(tokens.numpy(), SETTING), reference_rows(model, tokens, SETTING, None), found, 0.5)
    native.close()
    assert found.flips == 0 and found.expert_flips == 0 and found.near_flips <= 2
    assert 0.1 < found.ran / found.pairs < 0.95
    assert found.logit_diff <= LOGITS


def logits(path: Path, tokens: list[int]) -> np.ndarray:
    with Engine.load(path, n_ctx=128, n_threads=1) as engine:
        engine.set_depth(DepthPolicy.parse("full"))
        return np.array(engine.decode(tokens, logits="all"))


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_liquid_file_without_gates_is_the_llama_file(outtype: str, tmp_path: Path) -> None:
    """The same weights under both architectures: the same bits."""
    weights = llama_tensors()
    folder = write_llama(tmp_path / "llama", tensors=weights)
    renamed = {name.replace(".mlp.", ".feed_forward."): values for name, values in weights.items()}
    liquid = write_llama(tmp_path / "liquid", tensors=weights)
    (liquid / "model.safetensors").write_bytes(safetensors_bytes(renamed))
    words = {**CONFIG, "architectures": ["LiquidForCausalLM"], "model_type": "liquid", "rope_layout": "norm"}
    write_json(liquid / "config.json", {**words, "intermediate_size_mlp": words["intermediate_size"]})
    for one in (folder, liquid):
        converters.run(converters.plan(one, outtype), tmp_path / f"{one.name}.gguf")
    tokens = np.random.default_rng(3).integers(2, 260, 40).tolist()
    np.testing.assert_array_equal(logits(tmp_path / "llama.gguf", tokens), logits(tmp_path / "liquid.gguf", tokens))
