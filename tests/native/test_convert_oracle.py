"""Tiny random checkpoints by transformers: our GGUF is upstream's converter's, tensors bit for bit and key for key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.gguf_file import open_gguf
from tests.convert_oracle import MARKS, NO_BOS, Case, check_ours_is_theirs, run_upstream
from tests.hf_folders import byte_level_tokenizer, sentencepiece_model, sentencepiece_tokenizer, split_step, write_json
from tests.unit.test_converters_tokenizers import LLAMA3

pytestmark = MARKS
LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0 + i / 9 for i in range(8)], "long_factor": [1.0 + i for i in range(8)],
}  # fmt: skip
SCALING = "llama.rope.scaling."
LONGROPE_KEYS = NO_BOS | {
    SCALING + "original_context_length": 64,
    SCALING + "attn_factor": float(np.float32(np.sqrt(1 + np.log(4) / np.log(64)))),
}
LONGROPE_TENSORS = ("rope_factors_long.weight", "rope_factors_short.weight")
MAGNITUDE = {SCALING + "attn_factor": float(np.float32(0.1 * np.log(4.0) + 1))}
YARN_KEYS = {
    SCALING + "type": "yarn", SCALING + "factor": 4.0, SCALING + "original_context_length": 64,
    SCALING + "yarn_beta_fast": 8.0, SCALING + "yarn_beta_slow": 1.0,
}  # fmt: skip
OWN_MAGNITUDE = {"llama.rope.scaling.attn_factor": float(np.float32(1.3 / (0.1 * np.log(4.0) + 1)))}


def llama3_tokenizer(folder: Path) -> None:
    tokenizer = byte_level_tokenizer(pre_tokenizer=split_step(LLAMA3))
    tokenizer["model"]["ignore_merges"] = True
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair,
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [level, template]}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    words = (("<|eot_id|>", True), ("<tool>", False), ("<|odd|>", False))
    n_base = len(tokenizer["model"]["vocab"])
    for number, (word, special) in enumerate(words, n_base):
        tokenizer["added_tokens"].append({"id": number, "content": word, "special": special, **plain})
    write_json(folder / "tokenizer.json", tokenizer)


def sentencepiece(folder: Path) -> None:
    write_json(folder / "tokenizer.json", sentencepiece_tokenizer())
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    decoder = {str(i): {"content": word, "special": True} for i, word in enumerate(("<unk>", "<s>", "</s>"))}
    decoder["298"] = {"content": "<\u2581tool>", "special": False}
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    settings |= {"added_tokens_decoder": decoder, "add_prefix_space": True}
    write_json(folder / "tokenizer_config.json", settings)


def generation_settings(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"temperature": 0.6, "top_p": 0.9, "top_k": 20})


ODD_WIDTH = {"intermediate_size": 80}
CASES: dict[str, Case] = {
    "llama2": Case({"num_key_value_heads": 4}),
    "llama3": Case({"rope_parameters": LLAMA3_SCALING}),
    "llama3-long": Case({"rope_parameters": {**LLAMA3_SCALING, "factor": 32.0, "rope_theta": 700.0}, "head_dim": 32}),
    "linear": Case({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "yarn": Case({"rope_parameters": YARN}),
    "yarn-magnitude": Case({"rope_parameters": {**YARN, "attention_factor": 1.3}}, extra={**NO_BOS, **OWN_MAGNITUDE}),
    "tied": Case({"tie_word_embeddings": True}),
    "biased": Case({"attention_bias": True, "mlp_bias": True}),
    # upstream names the rule but leaves out the tensors, or has llama.cpp compute yarn with betas of its own
    "longrope": Case({"rope_parameters": LONGROPE}, extra=LONGROPE_KEYS, extra_tensors=LONGROPE_TENSORS),
    "yarn-betas": Case(
        {"rope_parameters": {**YARN, "beta_fast": 8.0}},
        extra=NO_BOS | MAGNITUDE,
        lacking=YARN_KEYS,
        extra_tensors=("rope_freqs.weight",),
    ),
    "shards": Case({"rope_parameters": LLAMA3_SCALING}, "bf16", "bfloat16", save={"max_shard_size": "100KB"}),
    "llama3-tokenizer": Case(pre="llama-bpe", finish=llama3_tokenizer, extra={}),
    "sentencepiece": Case({"bos_token_id": 1, "eos_token_id": 2}, finish=sentencepiece, extra={}),
    "named": Case(name="Tiny-Model-1M-Instruct-v0.2", finish=generation_settings),
    **{
        f"{dtype}-{outtype}": Case(ODD_WIDTH, outtype, dtype)
        for dtype in ("float32", "bfloat16", "float16")
        for outtype in ("f32", "bf16", "q8_0", "auto")
    },
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_upstream(CASES, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("name", CASES)
def test_ours_is_theirs(name: str, folders: Path, tmp_path: Path) -> None:
    check_ours_is_theirs(CASES[name], folders / name, tmp_path / "ours.gguf")


def test_the_cases_are_what_they_say(folders: Path) -> None:
    assert len(list((folders / "shards" / "model").glob("*.safetensors"))) > 2
    with open_gguf(folders / "llama3" / "theirs.gguf") as f:
        assert len(set(f.array("rope_freqs.weight").tolist())) > 2
    with open_gguf(folders / "float32-q8_0" / "theirs.gguf") as f:
        assert {f.tensors[f"blk.0.ffn_{part}.weight"].type.name for part in ("up", "down")} == {"Q8_0", "F16"}


def test_a_well_named_folder_has_upstreams_provenance(folders: Path, tmp_path: Path) -> None:
    folder = folders / "named" / CASES["named"].name
    ours = converters.run(converters.plan(folder, "f16"), tmp_path / "ours.gguf").output
    with open_gguf(ours) as a, open_gguf(folders / "named" / "theirs.gguf") as b:
        theirs = {key: value for key, value in b.metadata.items() if key.startswith("general.")}
        assert {key: a.metadata.get(key) for key in theirs} == theirs
        assert "Instruct" in theirs["general.finetune"] and theirs["general.sampling.top_k"] == 20
