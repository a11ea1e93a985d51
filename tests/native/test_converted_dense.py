"""Dense families in the library: what transformers computes, prompt and decode, whichever architecture is written.

Configurations are varied, because defaults hide what a graph has built in. Where llama.cpp's own graph ignores a key,
the file that ignores it too is shown to be wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from liquidcli import converters
from liquidcli.converters.arch.llama import Llama
from liquidcli.converters.arch.qwen2 import Qwen2
from liquidcli.converters.arch.qwen3 import Qwen3
from liquidcli.errors import LiquidError
from tests.hf_folders import write_json
from tests.hf_models import CLOSE, agreement, make_config, native_logits, random_tokens, reference_logits, relative
from tests.hf_models import save_random as save

WRONG = 10 * CLOSE
N_TOKENS, N_VOCAB = 96, 264  # of the tokenizer, which Gemma's embedding matches in upstream's converter
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
ODD_YARN = {**YARN, "beta_fast": 4.0, "beta_slow": 0.25}
UNEVEN_YARN = {**YARN, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.1}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 9 for i in range(8)], "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip
TOLD = ("dynamic", "longrope")
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
UNSCALED = {**PLAIN, "rope_theta": LLAMA3["rope_theta"]}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
LATE_WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
NO_WINDOWS = {"use_sliding_window": False, "layer_types": None}
GEMMA = {
    "vocab_size": N_VOCAB,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "num_hidden_layers": 7,
    "sliding_window": 24,
}
DEEP = {"num_hidden_layers": 62, "num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 32}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def rotations(full: dict[str, Any], local_theta: float = 10000.0) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": {**PLAIN, "rope_theta": local_theta}}}


@dataclass(frozen=True)
class Case:
    """`ignored`: changes of config.json that make of it what llama.cpp's own graph would compute."""

    model_type: str
    architecture: str
    words: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        return save(make_config(self.model_type, **self.words), folder)


CASES: dict[str, Case] = {
    "llama": Case("llama", "llama", {"num_key_value_heads": 4, "head_dim": 24}),
    "llama-biases": Case("llama", "llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    "llama-llama3": Case("llama", "llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-dynamic": Case("llama", "llama", {"rope_parameters": DYNAMIC}),
    "llama-yarn": Case("llama", "llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama-yarn-odd": Case("llama", "llama", {"rope_parameters": ODD_YARN}, {"rope_parameters": YARN}),
    "llama-yarn-uneven": Case("llama", "llama", {"rope_parameters": UNEVEN_YARN}, {"rope_parameters": YARN}),
    "llama-longrope": Case("llama", "llama", {"rope_parameters": LONGROPE}, {"rope_parameters": PLAIN}),
    "llama-longrope-short": Case(
        "llama", "llama", {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 512},
                           "max_position_embeddings": 1024}, {"rope_parameters": PLAIN},
    ),
    "mistral": Case("mistral", "llama", {"sliding_window": None, "head_dim": 24}),
    "mistral-window": Case("mistral", "liquid", {"sliding_window": 24, "head_dim": 24}, {"sliding_window": None}),
    "mistral-window-linear": Case("mistral", "liquid", {"sliding_window": 24, "rope_parameters": LINEAR}),
    "mistral-window-yarn": Case(
        "mistral", "liquid", {"sliding_window": 24, "rope_parameters": UNEVEN_YARN}, {"sliding_window": None}
    ),
    "qwen2": Case("qwen2", "qwen2", {"rope_parameters": {**PLAIN, "rope_theta": 1e6}}),
    "qwen2-yarn": Case("qwen2", "qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen2-window": Case("qwen2", "liquid", {**LATE_WINDOWS, "num_hidden_layers": 3}, NO_WINDOWS),
    "qwen2-llama3": Case("qwen2", "liquid", {"rope_parameters": LLAMA3}, {"rope_parameters": UNSCALED}),
    "qwen2-yarn-odd": Case("qwen2", "liquid", {"rope_parameters": ODD_YARN}, {"rope_parameters": YARN}),
    "qwen2-heads": Case("qwen2", "liquid", {"head_dim": 32}),
    "qwen3": Case("qwen3", "qwen3", {"tie_word_embeddings": True}),
    "qwen3-heads": Case("qwen3", "qwen3", {"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": YARN}),
    "qwen3-biases": Case("qwen3", "liquid", {"head_dim": 16, "attention_bias": True}),
    "qwen3-window": Case(
        "qwen3", "liquid", {**LATE_WINDOWS, "layer_types": MIXED, "num_hidden_layers": 3, "head_dim": 32}, NO_WINDOWS
    ),
    "qwen3-window-yarn": Case("qwen3", "liquid", {**LATE_WINDOWS, "head_dim": 16, "rope_parameters": YARN}),
    "gemma3": Case("gemma3_text", "gemma3", GEMMA),
    "gemma3-untied": Case("gemma3_text", "gemma3", {**GEMMA, "tie_word_embeddings": False, "num_hidden_layers": 3}),
    "gemma3-cap": Case("gemma3_text", "gemma3", {**GEMMA, "final_logit_softcapping": 30.0}),
    "gemma3-linear": Case("gemma3_text", "gemma3", {**GEMMA, **rotations({**LINEAR, "rope_theta": 1e6}, 500.0)}),
    "gemma3-yarn": Case("gemma3_text", "gemma3", {**GEMMA, **rotations(YARN)}),
    "gemma3-full": Case("gemma3_text", "gemma3", {**GEMMA, "layer_types": ["full_attention"] * 7}),
    "gemma3-pattern": Case(
        "gemma3_text", "gemma3", {**GEMMA, "layer_types": MIXED, "num_hidden_layers": 3}, {"layer_types": None}
    ),
    "gemma3-scalar": Case(
        "gemma3_text", "gemma3", {**GEMMA, "query_pre_attn_scalar": 40, "head_dim": 32}, {"query_pre_attn_scalar": 32}
    ),
    "gemma3-62": Case(  # as deep as the 27B model, for which llama.cpp has another scale of q built in
        "gemma3_text", "gemma3", {**GEMMA, **DEEP}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_library_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    found = agreement(case.save(tmp_path / "m"), random_tokens(N_TOKENS, N_VOCAB))
    assert found.architecture == case.architecture
    assert found.worst <= CLOSE
    expected = [word for word in TOLD if word in name] + ["architecture `liquid`"] * (case.architecture == "liquid")
    assert len(found.warnings) == len(expected)
    assert all(word in line for word, line in zip(expected, found.warnings, strict=True))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ignored])
def test_a_file_that_ignores_what_its_graph_ignores_is_wrong(name: str, tmp_path: Path) -> None:
    case, tokens = CASES[name], random_tokens(N_TOKENS, N_VOCAB)
    folder = case.save(tmp_path / "m")
    wanted = reference_logits(folder, tokens)
    config = {**json.loads((folder / "config.json").read_text()), **case.ignored}
    write_json(folder / "config.json", config)
    plan = converters.plan(folder, "f32")
    assert plan.architecture in ("llama", "qwen2", "qwen3", "gemma3")
    found = relative(native_logits(converters.run(plan, tmp_path / "m.gguf").output, tokens), wanted)
    assert found > WRONG


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window", "qwen3-window"])
def test_stock_all_the_same_is_the_file_without_windows(name: str, tmp_path: Path) -> None:
    folder = CASES[name].save(tmp_path / "m")
    asked = converters.run(converters.plan(folder, "f32", stock=True), tmp_path / "asked.gguf")
    config = {**json.loads((folder / "config.json").read_text()), **CASES[name].ignored}
    write_json(folder / "config.json", config)
    assert converters.run(converters.plan(folder, "f32"), tmp_path / "m.gguf").sha256 == asked.sha256


@pytest.mark.parametrize("name", ["qwen2-heads", "qwen3-biases"])
def test_stock_that_would_not_load_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CASES[name].save(tmp_path / "m")
    with pytest.raises(LiquidError, match=r"--stock: llama\.cpp's `qwen\d` cannot load this model: it "):
        converters.plan(folder, "f32", stock=True)
    for kind in (Llama, Qwen2, Qwen3):
        monkeypatch.setattr(kind, "beyond_stock", lambda self: [])
    stock = converters.run(converters.plan(folder, "f32"), tmp_path / "m.gguf").output
    with pytest.raises(LiquidError):
        native_logits(stock, random_tokens(4))


def save_multimodal(folder: Path, dtype: str = "float32", **words: Any) -> Path:
    """Gemma 3 with a tiny part that sees images."""
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    text = make_config("gemma3_text", **words).to_dict()
    marks = {"mm_tokens_per_image": 4, "boi_token_index": 250, "eoi_token_index": 251, "image_token_index": 252}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=VISION, **marks)
    return save(config, folder, dtype=dtype, kind=Gemma3ForConditionalGeneration)


def test_the_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    from transformers import Gemma3ForConditionalGeneration

    folder = save_multimodal(tmp_path / "m", **GEMMA)
    found = agreement(folder, random_tokens(N_TOKENS, 250), Gemma3ForConditionalGeneration)
    assert found.architecture == "gemma3" and found.worst <= CLOSE and not found.warnings
