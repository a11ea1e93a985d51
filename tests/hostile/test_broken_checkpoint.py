"""Broken, lying and half-copied checkpoint folders: each ends in one sentence and its exit code, and writes nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.errors import IntegrityError, LiquidError, NotFoundError, UsageError
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import (
    CONFIG,
    byte_level_tokenizer,
    llama_tensors,
    safetensors_bytes,
    sentencepiece_model,
    sentencepiece_tokenizer,
    write_json,
    write_llama,
)

FUZZ_SECONDS = 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m")


def refused(folder: Path, kind: type[LiquidError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        converters.run(converters.plan(folder, "f16"), folder.parent / "out.gguf")
    error = caught.value
    assert type(error) is kind, repr(error)
    assert "\n" not in error.message and 10 < len(error.message) < 600
    for word in words:
        assert word in error.message, error.message
    assert not list(folder.parent.glob("*.gguf")) and not list(folder.parent.glob("*.part"))


def weights(folder: Path, data: bytes) -> Path:
    (folder / "model.safetensors").write_bytes(data)
    return folder


# folders and files


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "gone", NotFoundError, "does not exist")


def test_a_file_where_a_folder_is_meant(tmp_path: Path, folder: Path) -> None:
    refused(folder / "model.safetensors", UsageError, "is a file, a checkpoint folder was expected")


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    refused(tmp_path / "m", NotFoundError, "config.json")


def test_a_folder_where_config_json_is_meant(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, IntegrityError, "config.json is no regular file")


def test_a_folder_where_the_output_is_meant(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, a file name was expected"):
        converters.run(converters.plan(folder), folder.parent)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, NotFoundError, "no model.safetensors")


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_pickles_are_refused_and_never_opened(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, LiquidError, name, "pickle")
    assert not (folder.parent / "exploded").exists()


def test_weights_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    refused(folder, NotFoundError, "adapter_model.safetensors")


# JSON


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 200_000, b'{"a": 1, "a": 2}', b"null"])
def test_files_that_are_no_json_object(folder: Path, name: str, text: bytes) -> None:
    (folder / name).write_bytes(text)
    refused(folder, IntegrityError, name)


def test_a_number_too_long_to_read(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"vocab_size": ' + b"9" * 10_000 + b"}")
    refused(folder, IntegrityError, "config.json")


def test_a_huge_sparse_json_file_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    refused(folder, IntegrityError, "more than any such file needs")


NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "architectures")


@pytest.mark.parametrize("key", NEEDED)
def test_a_configuration_without_a_key_that_is_needed(folder: Path, key: str) -> None:
    write_json(folder / "config.json", {name: value for name, value in CONFIG.items() if name != key})
    refused(folder, IntegrityError, "config.json", key.removesuffix("s"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 1 << 62),
        ("hidden_size", -32),
        ("hidden_size", "32"),
        ("hidden_size", 33),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 10**15),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 3),
        ("vocab_size", 10**12),
        ("vocab_size", None),
        ("intermediate_size", [64]),
        ("head_dim", 7),
        ("rms_norm_eps", "tiny"),
        ("rms_norm_eps", -1.0),
        ("rope_theta", float("nan")),
        ("rope_theta", 0),
        ("max_position_embeddings", 1 << 40),
        ("tie_word_embeddings", "no"),
        ("rope_scaling", "linear"),
        ("rope_scaling", {"type": "linear"}),
        ("rope_scaling", {"type": "linear", "factor": 0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64,
                          "low_freq_factor": 4.5, "high_freq_factor": 4.0}),
        ("layer_types", ["full_attention"]),
        ("architectures", "LlamaForCausalLM"),
    ],
)  # fmt: skip
def test_absurd_configurations(folder: Path, key: str, value: Any) -> None:
    words = {**CONFIG, key: value}
    write_json(folder / "config.json", {k: v for k, v in words.items() if v is not None})
    start = time.monotonic()
    refused(folder, IntegrityError)
    assert time.monotonic() - start < 30  # nothing is allocated or counted out


def test_an_architecture_nobody_knows(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "architectures": ["MambaForCausalLM" * 40]})
    refused(folder, LiquidError, "not known here", "nearest")


# safetensors


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\xff" * 64,
        (1 << 63).to_bytes(8, "little") + b"{}",
        (10).to_bytes(8, "little") + b"{}",
        raw(b""),
        raw(b"{"),
        raw(b"\xff\xff"),
        raw(b"[" * 100_000),
        raw([]),
        raw(None),
        raw({"a": 3}),
        raw({"a": {}}),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        raw({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [1 << 70, (1 << 70) + 4]}}, b"1234"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
        raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
        raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            b"12345678"),
        raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
             "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
    ],
)  # fmt: skip
def test_broken_headers(folder: Path, data: bytes) -> None:
    refused(weights(folder, data), IntegrityError, "model.safetensors")


@pytest.mark.parametrize("size", [10 << 30, 1 << 50])
def test_gigabytes_claimed_by_a_kilobyte(folder: Path, size: int) -> None:
    """Told from the header and the file's size, before anything is allocated."""
    entry = {"dtype": "F16", "shape": [size // 64, 32], "data_offsets": [0, size]}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(weights(folder, raw({"model.embed_tokens.weight": entry}, bytes(900))), IntegrityError, "cut short")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < 1 << 16  # KiB


def test_every_cut_of_a_file_is_seen(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    for size in [*range(0, 200, 7), *range(200, len(data), len(data) // 40), len(data) - 1]:
        refused(weights(folder, data[:size]), IntegrityError, "model.safetensors")


def test_flipped_bytes_never_crash(folder: Path) -> None:
    """Any header: a plan, or one sentence."""
    data = (folder / "model.safetensors").read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(5)
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(header_end)] = chance.randrange(256)
        weights(folder, bytes(broken))
        try:
            converters.plan(folder, "f16")
        except LiquidError as error:
            assert len(error.message) < 3000


def test_flipped_words_of_the_tokenizer_never_crash(folder: Path) -> None:
    text = json.dumps(byte_level_tokenizer(merges=("h e",)))
    chance = random.Random(6)
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        at = chance.randrange(len(text))
        broken = text[:at] + chance.choice('"[]{},:0aé\\ -') + text[at + chance.randint(0, 2) :]
        (folder / "tokenizer.json").write_text(broken, encoding="utf-8")
        try:
            converters.plan(folder, "f16")
        except LiquidError as error:
            assert len(error.message) < 3000


def other_value(value: Any, chance: random.Random) -> Any:
    return chance.choice([None, True, -1, 0, 1e300, "x", [], {}, [[]], {"a": 1}, [value], {"type": value}, 1 << 70])


def mutations(value: Any, chance: random.Random) -> Any:
    """The same JSON with one place replaced by something of another kind."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        return {**value, key: mutations(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], mutations(value[at], chance), *value[at + 1 :]]
    return other_value(value, chance)


def test_a_whole_vocabulary_is_not_quoted(folder: Path) -> None:
    tokenizer = byte_level_tokenizer(merges=("h e",))
    tokenizer["model"]["type"] = dict(tokenizer["model"])
    write_json(folder / "tokenizer.json", tokenizer)
    refused(folder, LiquidError, "only BPE is known")


@pytest.mark.parametrize("is_sentencepiece", [False, True])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_values_of_another_kind_never_crash(folder: Path, name: str, is_sentencepiece: bool) -> None:
    template = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}]
    processor = {"type": "TemplateProcessing", "single": template[:2], "pair": template}
    tokenizer = byte_level_tokenizer(
        merges=("h e",), post_processor={"type": "Sequence", "processors": [processor]},
        normalizer={"type": "Sequence", "normalizers": []},
    )  # fmt: skip
    settings = {
        "bos_token": {"content": "<s>"}, "add_bos_token": True, "chat_template": [{"name": "a", "template": "b"}],
        "added_tokens_decoder": {"290": {"content": "x", "special": True}},
    }  # fmt: skip
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "layer_types": ["full_attention"] * 2}
    start = {
        "config.json": {**CONFIG, **yarn},
        "tokenizer.json": sentencepiece_tokenizer() if is_sentencepiece else tokenizer,
        "tokenizer_config.json": settings,
        "generation_config.json": {"temperature": 0.5, "top_k": 3},
    }  # fmt: skip
    for other, value in start.items():
        write_json(folder / other, value)
    chance = random.Random(7)
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        write_json(folder / name, mutations(start[name], chance))
        try:
            what = converters.plan(folder, "f16")
            assert what.size_bytes and json.dumps(what.as_json())
        except LiquidError as error:
            assert len(error.message) < 1000 and "\n" not in error.message


def test_flipped_bytes_of_tokenizer_model_never_crash(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    data = sentencepiece_model()
    chance = random.Random(8)
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(data))] = chance.randrange(256)
        (folder / "tokenizer.model").write_bytes(broken)
        try:
            assert converters.plan(folder, "f16").size_bytes
        except LiquidError as error:
            assert len(error.message) < 3000


# shards


def index(folder: Path, change: Callable[[dict], None]) -> Path:
    path = folder / "model.safetensors.index.json"
    words = json.loads(path.read_text())
    change(words)
    write_json(path, words)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "m", n_shards=3)


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, NotFoundError, "1 of its 3 shards", "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("shard", ["../m/model-00001-of-00003.safetensors", "/etc/passwd", "model.bin", 3, None, []])
def test_an_index_that_leads_elsewhere(sharded: Path, shard: Any) -> None:
    index(sharded, lambda words: words["weight_map"].update({"lm_head.weight": shard}))
    refused(sharded, IntegrityError, "lm_head")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    refused(index(sharded, lambda words: words.update(weight_map=weight_map)), IntegrityError, "weight_map")


def test_the_one_file_counts_before_an_index_that_was_left_beside_it(sharded: Path) -> None:
    """As in transformers, whose save_pretrained leaves an old index where it was."""
    tensors = llama_tensors(seed=5)
    (sharded / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    for shard in (False, True):
        plan = converters.plan(sharded, "f32")
        assert any("model.safetensors lies beside it" in warning for warning in plan.warnings)
        converters.run(plan, sharded.parent / "out.gguf")
        with open_gguf(sharded.parent / "out.gguf") as f:
            np.testing.assert_array_equal(f.array("token_embd.weight"), tensors["model.embed_tokens.weight"])
        if not shard:
            next(sharded.glob("model-0*")).unlink()


def test_an_index_that_names_the_wrong_shard(sharded: Path) -> None:
    def swap(words: dict) -> None:
        words["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"

    refused(index(sharded, swap), IntegrityError, "lm_head.weight")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    tensors = llama_tensors()
    twice = {name: tensors[name] for name in [*list(tensors)[0::3], "lm_head.weight"]}
    for shard in sharded.glob("model-00001*"):
        shard.write_bytes(safetensors_bytes(twice))
    refused(sharded, IntegrityError, "lm_head.weight")


# tensors


def test_tensors_nobody_knows(tmp_path: Path) -> None:
    tensors = {**llama_tensors(), "model.layers.0.self_attn.q_proj.lora_A": np.zeros((2, 2), np.float32)}
    refused(write_llama(tmp_path / "m", tensors=tensors), IntegrityError, "q_proj.lora_A", "nearest")


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    refused(write_llama(tmp_path / "m", tensors=tensors), IntegrityError, "lacks 1", "layers.1.mlp.up_proj")


def test_a_head_that_is_missing_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    tensors = llama_tensors()
    del tensors["lm_head.weight"]
    refused(write_llama(tmp_path / "m", tensors=tensors), IntegrityError, "lm_head.weight")


def test_more_layers_than_the_configuration_has(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "num_hidden_layers": 1})
    refused(folder, IntegrityError, "9 of the checkpoint's 21 tensors are unknown")


def test_another_shape_than_the_configuration_says(folder: Path) -> None:
    write_json(folder / "config.json", {**CONFIG, "intermediate_size": 128})
    refused(folder, IntegrityError, "[64, 32]", "[128, 32]")


def test_weights_that_are_integers(tmp_path: Path) -> None:
    refused(write_llama(tmp_path / "m", dtype="I64"), IntegrityError, "stored as I64")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split_max_size", [None, 20_000])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, bad: float, split_max_size: int | None) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 3] = bad
    folder = write_llama(tmp_path / "m", tensors=tensors)
    with pytest.raises(IntegrityError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight holds values that are not"):
        converters.run(converters.plan(folder, "q8_0", split_max_size=split_max_size), tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_link_out_of_the_folder_is_the_hubs_own_way(tmp_path: Path, folder: Path) -> None:
    """Its cache links every file to a blob elsewhere; an index may not lead elsewhere by itself."""
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert converters.plan(folder, "f16").size_bytes


def test_a_file_that_shrinks_between_plan_and_run(folder: Path) -> None:
    what = converters.plan(folder, "f16")
    data = (folder / "model.safetensors").read_bytes()
    weights(folder, data[: len(data) // 2])
    with pytest.raises(IntegrityError, match="changed while it was read"):
        converters.run(what, folder.parent / "out.gguf")
    assert not list(folder.parent.glob("*.gguf"))
