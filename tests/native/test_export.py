"""Exported folders in transformers: the weights that were converted, the library's logits, the library's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.converters.checkpoint import open_checkpoint
from liquidcli.converters.export import plan_export, run_export
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import sentencepiece_model, sentencepiece_tokenizer, write_json
from tests.hf_models import CLOSE, make_config, native_logits, random_tokens, reference_logits, relative, save_random
from tests.nasty_text import NASTY, random_texts
from tests.native.test_tokenizer_parity import Vocabulary

pytest.importorskip("transformers")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "yarn": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.2}}),
    "yarn-betas": ("llama", {"rope_parameters": {**YARN, "beta_fast": 20.0}}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "attention_bias": False}),
    "gemma3": (
        "gemma3_text",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9},
    ),
}


def export(folder: Path, outtype: str = "f32") -> tuple[Path, Path]:
    """The GGUF of a folder, and the folder of that."""
    gguf, back = folder.with_suffix(".gguf"), folder.with_name("back")
    converters.run(converters.plan(folder, outtype), gguf)
    with open_gguf(gguf) as f:
        plan = plan_export(f)
        assert plan.warnings == ()
        run_export(plan, back)
    return gguf, back


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_from_the_folder_what_the_library_computes(family: str, tmp_path: Path) -> None:
    model_type, words = FAMILIES[family]
    folder = save_random(make_config(model_type, **words), tmp_path / "m")
    gguf, back = export(folder)
    before, after = open_checkpoint(folder).tensors, open_checkpoint(back).tensors
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # Gemma's norms went through a sum
        np.testing.assert_allclose(after[name].read(), tensor.read(), rtol=0, atol=2e-7 if family == "gemma3" else 0)
    tokens = random_tokens(48)
    assert relative(native_logits(gguf, tokens), reference_logits(back, tokens)) <= CLOSE


def sentencepiece(folder: Path) -> None:
    write_json(folder / "tokenizer.json", sentencepiece_tokenizer())
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(defined=("\u2581\u2581", "<tool>")))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    write_json(folder / "tokenizer_config.json", settings)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_transformers_splits_text_as_the_library_does(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_random(make_config("llama"), tmp_path / "m")
    if kind == "sentencepiece":
        sentencepiece(folder)
    gguf, back = export(folder)
    tokenizer = AutoTokenizer.from_pretrained(back)
    vocabulary = Vocabulary(gguf)
    for text in NASTY + random_texts(200):
        assert tokenizer.encode(text) == vocabulary.encode(text, add_special=True), text
        if kind == "bpe":  # the library takes any </s> for the end of a text
            own = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert own == vocabulary.encode(text, parse_special=False), text
    vocabulary.close()
