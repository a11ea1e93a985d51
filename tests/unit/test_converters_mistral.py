"""Mistral: `llama` as long as its window is no narrower than its context, else `liquid` with the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.config import Config
from liquidcli.errors import LiquidError
from liquidcli.gguf_file import open_gguf
from tests.families import model_of
from tests.hf_dense import MISTRAL_7B, make_config, make_tensors, write_dense

NO_KEY = {key: value for key, value in make_config("mistral").items() if key != "sliding_window"}


@pytest.mark.parametrize(("window", "name"), [(None, "llama"), (128, "llama"), (127, "liquid")])
def test_a_window_narrower_than_the_context_makes_it_liquid(window: int | None, name: str, tmp_path: Path) -> None:
    plan = converters.plan(write_dense(tmp_path / "m", make_config("mistral", sliding_window=window)), "f32")
    assert plan.architecture == name
    told = "becomes architecture `liquid`, which needs this project's library: llama.cpp's `llama` has no attention"
    assert [told in line for line in plan.warnings] == [True] * (name == "liquid")


def test_the_liquid_file_has_the_window_and_the_same_weights(tmp_path: Path) -> None:
    tensors = make_tensors(make_config("mistral"))
    made = {}
    for window in (None, 64):
        folder = write_dense(tmp_path / str(window), make_config("mistral", sliding_window=window), tensors)
        made[window] = converters.run(converters.plan(folder, "f16"), tmp_path / f"{window}.gguf").output
    with open_gguf(made[None]) as stock, open_gguf(made[64]) as liquid:
        assert {name: stock.raw(name).tobytes() for name in stock.tensors} == {
            name: liquid.raw(name).tobytes() for name in liquid.tensors
        }
        assert liquid.metadata["liquid.attention.sliding_window"] == 64
        assert liquid.metadata["liquid.attention.sliding_window_pattern"] == [True, True]
        assert liquid.metadata["liquid.rope.type"] == "norm"


def test_defaults_of_the_class_count_where_keys_are_absent() -> None:
    config = {**NO_KEY, "max_position_embeddings": 8192}
    assert model_of(Config(config)).gguf_name == "liquid"  # a window of 4096
    assert model_of(Config(NO_KEY)).gguf_name == "llama"
    without_heads = {key: value for key, value in config.items() if key != "num_key_value_heads"}
    heads = model_of(Config({**without_heads, "num_attention_heads": 16, "sliding_window": None}))
    assert {field.key: field.value for field in heads.fields()}["llama.attention.head_count_kv"] == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16},
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": None},
        {"hidden_act": "gelu", "sliding_window": None},
    ],
)
def test_what_mistral_cannot_mean_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LiquidError, match=r"layer_types|hidden_act"):
        model_of(Config({**NO_KEY, **changes}))


def test_the_published_configuration() -> None:
    config = Config(MISTRAL_7B)
    model = model_of(config)
    assert model.gguf_name == "liquid" and not config.unknown()
    assert model_of(Config({**MISTRAL_7B, "sliding_window": None})).gguf_name == "llama"


def test_longrope_and_a_window_is_refused() -> None:
    rope = {"type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = {**NO_KEY, "rope_scaling": rope, "original_max_position_embeddings": 64}
    assert np.allclose(model_of(Config(config)).generated()["rope_factors_long.weight"], 2)
    with pytest.raises(LiquidError, match=r"longrope is only supported for llama\.cpp's `llama`"):
        model_of(Config({**config, "sliding_window": 16}))


def test_stock_all_the_same_with_a_warning(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "m", make_config("mistral", sliding_window=16))
    plan = converters.plan(folder, "f32", stock=True)
    assert plan.architecture == "llama" and plan.as_json()["stock"] is True
    assert [line.partition(": llama.cpp's `llama` has no attention windows")[0] for line in plan.warnings] == [
        "becomes architecture `llama` and computes something else"
    ]
    assert "--stock" in converters.plan(folder, "f32").warnings[0]


def test_stock_changes_nothing_where_the_graph_is_right(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "m", make_config("mistral"))
    plans = [converters.plan(folder, "f32", stock=stock) for stock in (False, True)]
    assert plans[0].fields == plans[1].fields and not plans[1].warnings


def test_longrope_and_a_window_can_be_stock() -> None:
    rope = {"type": "longrope", "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    values = {**NO_KEY, "sliding_window": 16, "rope_scaling": rope, "original_max_position_embeddings": 64}
    assert model_of(Config(values), stock=True).gguf_name == "llama"
