"""Gemma 3: norms plus one, two bases, the windows' pattern, the scale of q, the text part of the multimodal model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.arch.gemma3_text import Gemma3, Gemma3Text
from liquidcli.converters.config import Config
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.hf_dense import GEMMA3_1B, GEMMA3_27B, make_config, make_tensors, write_dense
from tests.hf_folders import to_bf16

FULL, SLIDING = "full_attention", "sliding_attention"


def written(config: dict[str, Any]) -> dict[str, Any]:
    model = Gemma3(Config(config))
    return {field.key.removeprefix("gemma3."): field.value for field in model.fields()}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_one_is_added_to_norms_in_float32(dtype: str, tmp_path: Path) -> None:
    config = make_config("gemma3_text")
    tensors = make_tensors(config)
    plan = converters.plan(write_dense(tmp_path / "m", config, tensors, dtype), "bf16")
    held = {
        "F32": lambda w: w,
        "F16": lambda w: w.astype(np.float16).astype(np.float32),
        "BF16": lambda w: (to_bf16(w).astype(np.uint32) << 16).view(np.float32),
    }[dtype]
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        check_loadable(f)
        names = {
            "output_norm": "model.norm", "blk.1.attn_norm": "model.layers.1.input_layernorm",
            "blk.1.post_attention_norm": "model.layers.1.post_attention_layernorm",
            "blk.1.ffn_norm": "model.layers.1.pre_feedforward_layernorm",
            "blk.1.post_ffw_norm": "model.layers.1.post_feedforward_layernorm",
            "blk.1.attn_q_norm": "model.layers.1.self_attn.q_norm",
            "blk.1.attn_k_norm": "model.layers.1.self_attn.k_norm",
        }  # fmt: skip
        for ours, theirs in names.items():
            wanted = held(tensors[f"{theirs}.weight"]) + np.float32(1)
            np.testing.assert_array_equal(f.array(f"{ours}.weight"), wanted, err_msg=ours)


def test_the_scale_of_q_is_folded_where_it_is_not_the_heads_width(tmp_path: Path) -> None:
    config = make_config("gemma3_text", query_pre_attn_scalar=32)  # heads of 8: q is scaled by half of what is built in
    tensors = make_tensors(config)
    plan = converters.plan(write_dense(tmp_path / "m", config, tensors), "f32")
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        for part, factor in (("q", 0.5), ("k", 1.0)):
            source = tensors[f"model.layers.0.self_attn.{part}_norm.weight"]
            np.testing.assert_allclose(f.array(f"blk.0.attn_{part}_norm.weight"), (source + 1) * factor, rtol=1e-6)


def test_the_pattern_is_written_where_llama_cpp_has_another() -> None:
    seven = make_config("gemma3_text", num_hidden_layers=7)
    every_sixth = [SLIDING] * 5 + [FULL, SLIDING]
    assert written(seven) == written({**seven, "layer_types": every_sixth})
    assert "attention.sliding_window_pattern" not in written(seven)
    wanted = [True, False, True, False, True, False, True]
    assert written({**seven, "sliding_window_pattern": 2})["attention.sliding_window_pattern"] == wanted
    full = written({**seven, "layer_types": [FULL] * 7})
    assert not {"attention.sliding_window", "attention.sliding_window_pattern"} & set(full)


def test_both_spellings_of_the_rotations_agree() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = make_config("gemma3_text", rope_theta=2e6, rope_local_base_freq=5e3, rope_scaling=linear)
    new = make_config(
        "gemma3_text",
        rope_parameters={FULL: {**linear, "rope_theta": 2e6}, SLIDING: {"rope_type": "default", "rope_theta": 5e3}},
    )
    assert written(old) == written(new)
    assert written(old)["rope.freq_base_swa"] == 5e3 and written(old)["rope.scaling.factor"] == 8.0
    plain = written(make_config("gemma3_text"))
    assert (plain["rope.freq_base"], plain["rope.freq_base_swa"]) == (1e6, 1e4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ({"sliding_window": None}, "sliding_window is missing"),
        ({"rope_parameters": {FULL: {}, SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
            "neither frequency factors nor magnitudes",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 2.0}}, "magnitudes"),
    ],
)
def test_what_gemma3_cannot_say_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(LiquidError, match=named):
        Gemma3(Config(make_config("gemma3_text", **changes)))


def test_the_published_configurations() -> None:
    config = Config(GEMMA3_1B)
    model = Gemma3(config)
    assert model.q_scale == 1 and not config.unknown() and not model.warnings()
    config = Config(GEMMA3_27B)
    model = Gemma3Text(config, ())
    assert model.q_scale == 1 and not config.unknown() and not model.warnings()  # 168 is built in for 62 layers
    keys = {field.key: field.value for field in model.fields()}
    assert keys["gemma3.rope.scaling.factor"] == 8.0 and keys["gemma3.context_length"] == 131072
    assert model.n_vocab == 262208 and model.hparams.tie_word_embeddings


@pytest.mark.parametrize("style", ["language_model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_model(style: str, tmp_path: Path) -> None:
    text = make_config("gemma3_text")
    tensors = make_tensors(text)
    plain = converters.plan(write_dense(tmp_path / "text", text, tensors), "f16", name="model")
    alone = converters.run(plain, tmp_path / "text.gguf").output
    own = style if style == "language_model." else ""
    named = {own + (name if own else name.replace("model.", style, 1)): one for name, one in tensors.items()}
    images = "vision_tower.x.weight" if own else "model.vision_tower.x.weight"
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    config |= dict.fromkeys(text.keys() - config.keys())
    folder = write_dense(tmp_path / "both", config, {**named, images: np.ones((2, 2), np.float32)})
    plan = converters.plan(folder, "f16", name="model")
    assert [one.reason for one in plan.dropped] == ["only the text part is converted"] and not plan.warnings
    assert converters.run(plan, tmp_path / "both.gguf").output.read_bytes() == alone.read_bytes()


def test_a_multimodal_model_without_its_text_part_is_told() -> None:
    with pytest.raises(IntegrityError, match="no text_config"):
        Gemma3Text(Config({"architectures": ["Gemma3ForConditionalGeneration"]}), ())
