"""Qwen3: norms on q and k, heads of 128 by default, `liquid` for windows and a bias on the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.config import Config
from liquidcli.converters.gated_base import base_words
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.families import model_of
from tests.hf_dense import QWEN3_8B, make_config, make_tensors, write_dense


def test_norms_arrive_and_lengths_are_written(tmp_path: Path) -> None:
    config = make_config("qwen3", head_dim=12)
    tensors = make_tensors(config)
    plan = converters.plan(write_dense(tmp_path / "m", config, tensors), "q8_0")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        check_loadable(f)
        assert not plan.warnings and f.metadata["general.architecture"] == "qwen3"
        assert f.metadata["qwen3.attention.key_length"] == f.metadata["qwen3.attention.value_length"] == 12
        for part in "qk":
            source = tensors[f"model.layers.0.self_attn.{part}_norm.weight"]
            np.testing.assert_array_equal(f.array(f"blk.0.attn_{part}_norm.weight"), source)


def test_heads_are_128_wide_where_nothing_is_said() -> None:
    config = {key: value for key, value in make_config("qwen3").items() if key != "head_dim"}
    assert model_of(Config(config)).dims["q"] == 4 * 128


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention_bias": True}, "no bias on the attention's output"),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "no attention windows"),
    ],
)
def test_what_qwen3_cannot_say_becomes_liquid(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = make_config("qwen3", **changes)
    plan = converters.plan(write_dense(tmp_path / "m", config), "f32")
    assert plan.architecture == "liquid" and why in plan.warnings[0]
    written = {field.key: field.value for field in plan.fields}
    assert written["liquid.rope.type"] == "neox" and written["liquid.attention.qk_norm"] == "head"
    names = {output.name for output in plan.outputs}
    assert ("blk.1.attn_output.bias" in names) == ("attention_bias" in changes) and "blk.1.attn_q_norm.weight" in names


def test_under_gates_it_is_the_same_model() -> None:
    config = make_config("qwen3", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    words = base_words(Config(config), "qwen3")
    assert words["layer_types"] == ["full_attention", "sliding_attention"] and words["qk_norm"] == "head"
    assert words["use_sliding_window"] is None  # layer_types say it


def test_the_published_configuration() -> None:
    config = Config(QWEN3_8B)
    assert model_of(config).gguf_name == "qwen3" and not config.unknown()
