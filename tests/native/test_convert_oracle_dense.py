"""Mistral, Qwen2, Qwen3 and Gemma 3 by transformers: where a stock architecture is written, it is upstream's file.

And where it is not, upstream's file computes something else or does not load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from liquidcli.errors import LiquidError
from tests.convert_oracle import MARKS, NO_BOS, Case, check_ours_is_theirs, run_upstream
from tests.hf_folders import byte_level_tokenizer, write_json
from tests.hf_models import native_logits, random_tokens, reference_logits, relative
from tests.native import test_converted_dense as varied

pytestmark = MARKS
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
    "beta_slow": 1.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 500.0}
GEMMA = {
    "vocab_size": 264,  # the tokenizer's: upstream cuts what it takes for rows without a token
    "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window": 64,
}  # fmt: skip
WIDE = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1}  # wider than the context
ODD = [True, False, True, True, False, True, True]
TYPES = ["sliding_attention" if one else "full_attention" for one in ODD]
PATTERN = {"gemma3.attention.sliding_window_pattern": ODD}
NORMS = ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"]


def old_spelling(folder: Path) -> None:
    """As Gemma's own checkpoints have it: most keys left to the defaults, two bases, a scaling of its own."""
    config = json.loads((folder / "config.json").read_text())
    for name in ("layer_types", "rope_parameters", "_sliding_window_pattern", "hidden_activation"):
        del config[name]
    old = {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    write_json(folder / "config.json", {**config, **old, "sliding_window_pattern": 6})


def with_end_of_text(folder: Path) -> None:
    """transformers' Qwen2 tokenizer adds this token where it is missing."""
    tokenizer = byte_level_tokenizer()
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    number = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append({"id": number, "content": "<|endoftext|>", **plain})
    write_json(folder / "tokenizer.json", tokenizer)


class Multimodal(Case):
    """The configuration is the text part's."""

    def write(self, folder: Path) -> Path:
        return varied.save_multimodal(folder, self.dtype, **self.config)


def case(model_type: str, words: dict[str, Any], outtype: str = "f16", dtype: str = "float32", **options: Any) -> Case:
    options = {"finish": with_end_of_text, **options} if model_type == "qwen2" else options
    return Case(words, outtype, dtype, model_type, **options)


CASES: dict[str, Case] = {
    "mistral": case("mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral-wide": case("mistral", {"sliding_window": 4096, "tie_word_embeddings": True}, "q8_0", "bfloat16"),
    "mistral-yarn": case("mistral", {"rope_parameters": YARN, "num_key_value_heads": 4}, "auto", "float16"),
    "mistral-window": case("mistral", {"sliding_window": 24}, stock=True),
    "qwen2": case("qwen2", {}),
    "qwen2-wide": case("qwen2", {**WIDE, "tie_word_embeddings": True}, "bf16", "bfloat16"),
    "qwen2-window": case("qwen2", {**WIDE, "sliding_window": 24}, stock=True),
    "qwen2-yarn": case("qwen2", {"rope_parameters": YARN, "intermediate_size": 80}, "q8_0"),
    "qwen2-linear": case("qwen2", {"rope_parameters": LINEAR, "head_dim": 16}, "f32", "bfloat16"),
    "qwen3": case("qwen3", {}),
    "qwen3-wide": case("qwen3", {**WIDE, "head_dim": 32, "tie_word_embeddings": True}, "auto", "bfloat16"),
    "qwen3-window": case("qwen3", {**WIDE, "sliding_window": 24}, stock=True),
    "qwen3-yarn": case("qwen3", {"rope_parameters": YARN, "head_dim": 48, "num_key_value_heads": 1}, "q8_0"),
    "gemma3": case("gemma3_text", GEMMA),
    "gemma3-q8_0": case("gemma3_text", {**GEMMA, "tie_word_embeddings": False}, "q8_0", "bfloat16"),
    "gemma3-cap": case("gemma3_text", {**GEMMA, "final_logit_softcapping": 30.0}, "auto", "bfloat16"),
    "gemma3-old": case("gemma3_text", {**GEMMA, "num_hidden_layers": 3}, finish=old_spelling),
    "gemma3-bases": case(
        "gemma3_text", {**GEMMA, "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}}, "f32"
    ),
    "gemma3-multimodal": Multimodal(GEMMA, model_type="gemma3_text"),
    # upstream does not write which layers have windows
    "gemma3-pattern": case("gemma3_text", {**GEMMA, "layer_types": TYPES}, extra={**NO_BOS, **PATTERN}),
    # llama.cpp divides by the square root of head_dim whatever the configuration says
    "gemma3-scalar": case(
        "gemma3_text", {**GEMMA, "query_pre_attn_scalar": 20, "num_hidden_layers": 1},
        other_bytes=("blk.0.attn_q_norm.weight",),
    ),
    # upstream adds one to norms in the checkpoint's F16, transformers in float32
    "gemma3-f16": case(
        "gemma3_text", {**GEMMA, "num_hidden_layers": 1}, "f16", "float16",
        other_bytes=(*(f"blk.0.{name}.weight" for name in NORMS), "output_norm.weight"),
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_upstream(CASES, tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("name", CASES)
def test_ours_is_theirs(name: str, folders: Path, tmp_path: Path) -> None:
    check_ours_is_theirs(CASES[name], folders / name, tmp_path / "ours.gguf")


DIFFERENT = {name: one for name, one in varied.CASES.items() if one.ignored or one.architecture == "liquid"}


@pytest.fixture(scope="session")
def different(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = {name: Case(one.words, "f32", model_type=one.model_type) for name, one in DIFFERENT.items()}
    return run_upstream(cases, tmp_path_factory.mktemp("different"))


@pytest.mark.parametrize("name", DIFFERENT)
def test_upstreams_file_is_wrong_or_does_not_load(name: str, different: Path) -> None:
    tokens = random_tokens(varied.N_TOKENS, varied.N_VOCAB)
    try:
        found = native_logits(different / name / "theirs.gguf", tokens)
    except LiquidError:
        assert name in ("qwen2-heads", "qwen3-biases")
        return
    assert relative(found, reference_logits(different / name / "model", tokens)) > varied.WRONG
