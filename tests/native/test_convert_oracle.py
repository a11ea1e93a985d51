"""Tiny random checkpoints by transformers: our GGUF is upstream's converter's, tensors bit for bit and key for key.

Upstream tells a pre-tokenizer by the hash of one text's tokens, which a tiny vocabulary cannot have: it is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.gguf_file import GGUFFile, open_gguf
from tests.hf_folders import byte_level_tokenizer, sentencepiece_model, sentencepiece_tokenizer, split_step, write_json
from tests.unit.test_converters_tokenizers import LLAMA3

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no upstream converter"),
]
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
from conversion.base import TextModel
for folder, outtype, out, pre in json.load(open(sys.argv[2])):
    TextModel.get_vocab_base_pre = lambda self, tokenizer, pre=pre: pre
    sys.argv[1:] = [folder, "--outtype", outtype, "--outfile", out]
    convert_hf_to_gguf.main()
"""
# keys that may differ: where a file comes from, not what it is
PROVENANCE = ("general.name", "general.basename", "general.finetune", "general.version", "general.size_label")
# written always, because llama.cpp adds a bos by itself under some pre-tokenizers
NO_BOS = {"tokenizer.ggml.add_bos_token": False}
SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
OWN_MAGNITUDE = {"llama.rope.scaling.attn_factor": float(np.float32(1.3 / (0.1 * np.log(4.0) + 1)))}


@dataclass(frozen=True)
class Case:
    """`extra`: keys that we write on purpose and upstream does not, with their values."""

    config: dict[str, Any] = field(default_factory=dict)
    outtype: str = "f16"
    dtype: str = "float32"
    pre: str = "gpt-2"
    name: str = "model"
    save: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Path], None] = lambda folder: None
    extra: dict[str, Any] = field(default_factory=lambda: NO_BOS)


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
    "mistral": Case({"model_type": "mistral", "sliding_window": 64, "head_dim": 24}),
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


def write_checkpoint(folder: Path, case: Case) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}
    words = {**SMALL, **case.config}
    config_kind, model_kind = kinds[words.pop("model_type", "llama")]
    torch.manual_seed(0)
    model = model_kind(config_kind(**words)).to(getattr(torch, case.dtype))
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    model.save_pretrained(folder, **case.save)
    write_json(folder / "tokenizer.json", byte_level_tokenizer())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": "{{ messages }}"})
    case.finish(folder)
    return folder


@pytest.fixture(scope="session")
def upstream() -> Path:
    """The folder with upstream's converter, out of the pinned archive."""
    return Path(os.environ["LIQUID_ORACLE_DIR"])


@pytest.fixture(scope="session")
def folders(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per case with the checkpoint and, from one process, upstream's `theirs.gguf`."""
    home = tmp_path_factory.mktemp("cases")
    jobs = []
    for name, case in CASES.items():
        folder = write_checkpoint(home / name / case.name, case)
        jobs.append((str(folder), case.outtype, str(home / name / "theirs.gguf"), case.pre))
    (home / "driver.py").write_text(DRIVER)
    write_json(home / "jobs.json", jobs)
    command = [sys.executable, str(home / "driver.py"), str(upstream), str(home / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def typed(f: GGUFFile, *left_out: str) -> dict[str, tuple]:
    return {key: (value, f.metadata_types[key]) for key, value in f.metadata.items() if key not in left_out}


@pytest.mark.parametrize("name", CASES)
def test_ours_is_theirs(name: str, folders: Path, tmp_path: Path) -> None:
    case = CASES[name]
    plan = converters.plan(folders / name / case.name, case.outtype)
    ours = converters.run(plan, tmp_path / "ours.gguf").output
    with open_gguf(ours) as a, open_gguf(folders / name / "theirs.gguf") as b:
        shapes = [{key: (info.shape, info.type) for key, info in f.tensors.items()} for f in (a, b)]
        assert shapes[0] == shapes[1]
        assert [key for key in a.tensors if a.raw(key).tobytes() != b.raw(key).tobytes()] == []
        mine, others = typed(a, *PROVENANCE), typed(b, *PROVENANCE)
        assert {key: mine.pop(key)[0] for key in set(mine) - set(others)} == case.extra
        assert mine == others


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
