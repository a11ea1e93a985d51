"""Which bases the trainer takes: keys and tensors that its forward pass would ignore are refused, by their name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from liquidcli.errors import IntegrityError, LiquidError, UsageError
from liquidcli.gates.training.base import load_base
from liquidcli.gates.training.network import Network
from liquidcli.gates.training.options import Options
from liquidcli.gates.training.result import read_gates
from liquidcli.gates.training.train import train
from tests.gate_packs import write_base, write_tiny_pack
from tests.gguf_bytes import FLOAT32, STRING, UINT32, f32, liquid, llama

ODD_KEYS = {
    "rope.scaling.type": (STRING, "yarn"),
    "attention.sliding_window": (UINT32, 16),
    "attention.clamp_kqv": (FLOAT32, 4.0),
    "attention.temperature_length": (UINT32, 8192),
    "expert_shared_feed_forward_length": (UINT32, 32),
    "rope.dimension_count": (UINT32, 4),
    "attention.value_length": (UINT32, 4),
    "attention.scale": (FLOAT32, 0.5),
    "embedding_scale": (FLOAT32, 8.0),
    "feed_forward.activation": (STRING, "gelu"),
    "final_logit_softcapping": (FLOAT32, 30.0),
}
ODD_TENSORS = {
    "blk.1.post_attention_norm.weight": f32(32), "blk.1.ffn_up.bias": f32(64), "blk.0.attn_sinks.weight": f32(4),
}  # fmt: skip


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_that_would_be_ignored_are_named(tmp_path, key):
    g = llama(2)
    g.keys[f"llama.{key}"] = ODD_KEYS[key]
    with pytest.raises(UsageError, match=key):
        load_base(g.write(tmp_path / "odd.gguf"))


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_tensors_that_would_be_ignored_are_named(tmp_path, name):
    g = llama(2)
    g.tensors[name] = ODD_TENSORS[name]
    with pytest.raises(UsageError, match=name.removesuffix(".weight")):
        load_base(g.write(tmp_path / "odd.gguf"))


def test_a_tensor_that_is_missing_is_named(tmp_path):
    g = llama(2)
    del g.tensors["blk.1.attn_k.weight"]
    with pytest.raises(UsageError, match="has not the tensor"):
        load_base(g.write(tmp_path / "odd.gguf"))


@pytest.mark.parametrize(("key", "expected"), [("linear", 4.0), ("none", 1.0)])
def test_linear_scaling_of_positions_is_read(tmp_path, key, expected):
    g = llama(2)
    g.keys["llama.rope.scaling.type"], g.keys["llama.rope.scaling.factor"] = (STRING, key), (FLOAT32, 4.0)
    assert load_base(g.write(tmp_path / "scaled.gguf")).shape.rope_scale == expected


def test_another_architecture_and_a_model_with_gates_are_refused(tmp_path):
    with pytest.raises(UsageError, match="gemma2"):
        load_base(write_base(tmp_path / "gemma.gguf", arch="gemma2"))
    with pytest.raises(UsageError, match="gates already"):
        load_base(liquid().write(tmp_path / "gated.gguf"))


@pytest.mark.parametrize(
    "depth", [{"threshold": 0.0}, {"threshold": 1.0}, {"min_layers": 2}, {"ffn_scaled_by_gate": True}], ids=str
)
def test_a_pack_that_training_would_change_in_silence_is_not_gone_on_from(tmp_path, depth):
    base = write_base(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base, **depth)
    with pytest.raises(UsageError, match="training goes on from"):
        read_gates(pack, Network(load_base(base), 0))


def test_going_on_from_a_pack_of_a_fine_tune_is_refused(tmp_path):
    base, tuned = write_base(tmp_path / "base.gguf"), llama(4)
    tuned.tensors["blk.2.ffn_norm.weight"] = f32(32, seed=50)
    other = tuned.write(tmp_path / "tuned.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base)
    assert read_gates(pack, Network(load_base(base), 0)).layers == [1, 2]
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": list(range(16)) * 2}) + "\n")
    o = replace(Options(data=(str(tmp_path / "a.jsonl"),)), init=str(pack))
    with pytest.raises(IntegrityError, match="fine-tune") as error:
        train(other, tmp_path / "out.gguf", o)
    assert isinstance(error.value, LiquidError) and "\n" not in error.value.message
