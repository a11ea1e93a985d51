"""Qwen2: biases on q, k and v, halves left in place, windows from a layer on; `liquid` for what `qwen2` cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.config import Config
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.families import chosen, model_of
from tests.hf_dense import QWEN2_5_7B, make_config, make_tensors, write_dense

WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def test_weights_and_biases_arrive_unpermuted(tmp_path: Path) -> None:
    config = make_config("qwen2")
    tensors = make_tensors(config)
    plan = converters.plan(write_dense(tmp_path / "m", config, tensors), "f16")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        check_loadable(f)
        assert not plan.warnings and f.metadata["general.architecture"] == "qwen2"
        for part in "qkv":
            source = tensors[f"model.layers.1.self_attn.{part}_proj.bias"]
            np.testing.assert_array_equal(f.array(f"blk.1.attn_{part}.bias"), source)
        wanted = tensors["model.layers.0.self_attn.q_proj.weight"].astype(np.float16)
        assert f.raw("blk.0.attn_q.weight").tobytes() == wanted.tobytes()
        assert "blk.0.attn_output.bias" not in f.tensors
        assert not {"qwen2.vocab_size", "qwen2.attention.key_length"} & set(f.metadata)


def test_a_checkpoint_without_biases_is_told(tmp_path: Path) -> None:
    config = make_config("qwen2")
    tensors = {name: values for name, values in make_tensors(config).items() if not name.endswith("bias")}
    with pytest.raises(IntegrityError, match=r"lacks 6 tensors: model\.layers\.0\.self_attn\.q_proj\.bias"):
        converters.plan(write_dense(tmp_path / "m", config, tensors))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (WINDOWS, "no attention windows"),
        ({**WINDOWS, "max_window_layers": 9, "layer_types": ["full_attention", "sliding_attention"]}, "windows"),
        ({"head_dim": 16}, "expects heads of hidden_size / num_attention_heads"),
        ({"rope_scaling": LLAMA3}, "no frequency factors"),
        ({"rope_scaling": {**YARN, "beta_fast": 8.0}}, "no frequency factors"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "no frequency factors"),
    ],
)
def test_what_qwen2_cannot_say_becomes_liquid(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = make_config("qwen2", **changes)
    plan = converters.plan(write_dense(tmp_path / "m", config), "f32")
    assert plan.architecture == "liquid"
    assert len(plan.warnings) == 1 and "llama.cpp's `qwen2`" in plan.warnings[0] and why in plan.warnings[0]
    written = {field.key: field.value for field in plan.fields}
    assert written["liquid.rope.type"] == "neox" and written["liquid.attention.qk_norm"] == "none"
    if "sliding_window" in changes:
        assert written["liquid.attention.sliding_window_pattern"] == [False, True]
    names = {output.name for output in plan.outputs}
    assert ("rope_freqs.weight" in names) == ("rope_scaling" in changes) and "blk.1.attn_k.bias" in names


@pytest.mark.parametrize(
    "changes",
    [
        {**WINDOWS, "use_sliding_window": False},
        {**WINDOWS, "sliding_window": 128},
        {**WINDOWS, "max_window_layers": 2},
        {**WINDOWS, "layer_types": ["full_attention"] * 2},
        {"rope_scaling": YARN},
        {"head_dim": 8},
    ],
)
def test_what_changes_nothing_stays_stock(changes: dict[str, Any]) -> None:
    assert model_of(Config(make_config("qwen2", **changes))).gguf_name == "qwen2"


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["sliding_attention"] * 2},
        {"layer_types": ["chunked_attention"] * 2},
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
    ],
)
def test_what_nobody_computes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LiquidError, match=r"layer_types|longrope"):
        model_of(Config(make_config("qwen2", **changes)))


def test_the_published_configuration() -> None:
    config = Config(QWEN2_5_7B)
    assert model_of(config).gguf_name == "qwen2" and not config.unknown()


def test_keys_of_other_families_do_not_leak_into_liquid() -> None:
    config = Config(make_config("qwen2", **WINDOWS, no_rope_layers=[0, 0], num_local_experts=4))
    model = model_of(config)
    assert "liquid.rope.layers" not in {field.key for field in model.fields()}
    assert sorted(line.split()[1] for line in config.unknown()) == ["no_rope_layers", "num_local_experts"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"head_dim": 16}, "expects heads of hidden_size"),
        ({"rope_scaling": LLAMA3}, "no frequency factors"),
        ({**WINDOWS, "rope_scaling": LLAMA3}, "no frequency factors"),
    ],
)
def test_stock_is_refused_where_it_would_not_load(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(LiquidError, match=f"--stock: .* cannot load this model: it (has )?{why}") as caught:
        model_of(Config(make_config("qwen2", **changes)), stock=True)
    assert "leave out --stock" in caught.value.hint
    _, told = chosen(Config(make_config("qwen2", **changes)))
    assert "--stock" not in told[0]


def test_stock_keeps_the_familys_keys() -> None:
    model, told = chosen(Config(make_config("qwen2", **WINDOWS)), stock=True)
    assert len(told) == 1 and "no attention windows" in told[0]
    assert [field.key for field in model.fields()] == [
        field.key for field in model_of(Config(make_config("qwen2"))).fields()
    ]
