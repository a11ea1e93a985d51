"""Mixtral: experts lie apart and are stacked in a stream, a window makes it `liquid`, foreign keys are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.run import _pieces
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import open_gguf
from tests.hf_mixtures import fuse, make_config, make_tensors, stacks, write_mixture

CONFIG = make_config("mixtral")


def test_experts_are_stacked_in_order(tmp_path: Path) -> None:
    tensors = make_tensors(CONFIG)
    plan = converters.plan(write_mixture(tmp_path / "m", CONFIG, tensors), "f32")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        assert f.metadata["general.architecture"] == "llama"
        assert (f.metadata["llama.expert_count"], f.metadata["llama.expert_used_count"]) == (3, 2)
        for layer in range(4):
            for part, wanted in stacks(tensors, CONFIG, layer).items():
                np.testing.assert_array_equal(f.array(f"blk.{layer}.ffn_{part}_exps.weight"), wanted)
            router = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
            np.testing.assert_array_equal(f.array(f"blk.{layer}.ffn_gate_inp.weight"), router)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("outtype", ["bf16", "q8_0"])
def test_fused_experts_make_the_same_bytes(dtype: str, outtype: str, tmp_path: Path) -> None:
    tensors, files = make_tensors(CONFIG), []
    for name, some in (("apart", tensors), ("fused", fuse(tensors, CONFIG))):
        plan = converters.plan(write_mixture(tmp_path / name, CONFIG, some, dtype=dtype), outtype, name="model")
        files.append(converters.run(plan, tmp_path / f"{name}.gguf").output.read_bytes())
    assert files[0] == files[1]


def test_a_stack_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    plan = converters.plan(write_mixture(tmp_path / "m", CONFIG, make_tensors(CONFIG)), "f32")
    (stack,) = [output for output in plan.outputs if output.name == "blk.2.ffn_up_exps.weight"]
    sizes = [piece.nbytes for piece in _pieces(plan, stack)]
    assert sizes == [stack.size_bytes // 3] * 3


def test_a_missing_and_a_misshapen_expert(tmp_path: Path) -> None:
    tensors = make_tensors(CONFIG)
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    without = {key: one for key, one in tensors.items() if key != name}
    with pytest.raises(IntegrityError, match=f"lacks 1 tensors: {name}"):
        converters.plan(write_mixture(tmp_path / "lacking", CONFIG, without))
    with pytest.raises(IntegrityError, match=r"w3\.weight has the shape \[48, 31\]"):
        converters.plan(write_mixture(tmp_path / "odd", CONFIG, {**tensors, name: tensors[name][:, 1:]}))


@pytest.mark.parametrize(("window", "name"), [(None, "llama"), (128, "llama"), (127, "liquid")])
def test_a_window_shorter_than_the_context_makes_it_liquid(window: int | None, name: str, tmp_path: Path) -> None:
    config = make_config("mixtral", sliding_window=window)
    plan = converters.plan(write_mixture(tmp_path / "m", config, make_tensors(config)))
    assert plan.architecture == name
    assert [line for line in plan.warnings if "`llama` has no attention windows" in line] == list(plan.warnings)
    keys = {field.key: field.value for field in plan.fields}
    assert keys.get("liquid.attention.sliding_window") == (127 if name == "liquid" else None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_topk_prob", False), ("attention_bias", True), ("clip_qkv", 8.0), ("qk_norm", "head"),
        ("layer_types", ["sliding_attention"] * 4), ("shared_expert_intermediate_size", 16),
    ],
)  # fmt: skip
def test_what_mixtral_does_not_know_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = write_mixture(tmp_path / "m", {**CONFIG, key: value}, make_tensors(CONFIG))
    with pytest.raises(LiquidError, match=f"{key} is .* not supported: .*Mixtral"):
        converters.plan(folder)
