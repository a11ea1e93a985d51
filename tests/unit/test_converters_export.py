"""GGUF back to a folder: tensors bit for bit, a configuration that converts to the same keys, a closed world."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from liquidcli import converters
from liquidcli.converters.checkpoint import open_checkpoint
from liquidcli.converters.config import Config
from liquidcli.converters.export import plan_export, run_export
from liquidcli.converters.registry import find
from liquidcli.errors import IntegrityError, LiquidError, UsageError
from liquidcli.gguf_file import open_gguf
from tests.core_families import core_first
from tests.hf_folders import (
    CONFIG,
    llama_tensors,
    safetensors_bytes,
    sentencepiece_model,
    sentencepiece_tokenizer,
    write_json,
    write_llama,
)
from tests.tiny import make_model, save_checkpoint
from tests.tiny_families import FAMILIES

# read from the folder's name and card, or worded anew
FREE = ("general.", "tokenizer.ggml.pre")
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


def convert(folder: Path, out: Path, outtype: str = "f32") -> Path:
    return converters.run(converters.plan(folder, outtype), out).output


def export(path: Path, folder: Path, dtype: str = "auto", **options: Any) -> list[str]:
    with open_gguf(path) as f:
        plan = plan_export(f, dtype, **options)
        run_export(plan, folder)
    config = json.loads((folder / "config.json").read_text())
    values = Config(config)
    find(config)[1](values, open_checkpoint(folder).tensors.keys(), exact_gate=True)
    assert values.unknown() == []  # the way forward understands every word
    return list(plan.warnings)


def same_model(a: Path, b: Path) -> None:
    with open_gguf(a) as f, open_gguf(b) as g:
        shapes = [{name: (info.shape, info.type) for name, info in one.tensors.items()} for one in (f, g)]
        assert shapes[0] == shapes[1]
        differ = [name for name in f.tensors if f.raw(name).tobytes() != g.raw(name).tobytes()]
        if differ == ["rope_freqs.weight"]:  # found again from its values, not from keys
            np.testing.assert_allclose(f.array(differ[0]), g.array(differ.pop()), rtol=1e-5)
        assert differ == []
        keys = {key for key in {*f.metadata, *g.metadata} if not key.startswith(FREE)}
        assert {k: f.metadata.get(k) for k in keys} == {k: g.metadata.get(k) for k in keys}


def same_weights(a: Path, b: Path) -> None:
    ours, theirs = open_checkpoint(a).tensors, open_checkpoint(b).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.read(), theirs[name].read(), name)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 16, "num_key_value_heads": 4},
        {"rope_parameters": LLAMA3, "hidden_size": 256, "head_dim": 64},
        {"rope_parameters": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 4096}, "head_dim": 128},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}},
        {"rope_parameters": YARN},
        {"rope_parameters": {**YARN, "attention_factor": 1.3}},
    ],
)
def test_llama(config: dict[str, Any], tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", config)
    first = convert(folder, tmp_path / "1.gguf")
    assert export(first, tmp_path / "back") == []
    same_weights(folder, tmp_path / "back")
    same_model(first, convert(tmp_path / "back", tmp_path / "2.gguf"))


@pytest.mark.parametrize("family", core_first(FAMILIES))
def test_liquid(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(make_model(family), tmp_path / "m")
    first = convert(folder, tmp_path / "1.gguf")
    assert export(first, tmp_path / "back") == []
    same_model(first, convert(tmp_path / "back", tmp_path / "2.gguf"))


def test_an_unfolded_gate_comes_back_in_its_two_matrices(tmp_path: Path) -> None:
    folder = save_checkpoint(make_model("bottleneck"), tmp_path / "m")
    plan = converters.plan(folder, "f32", exact_gate=True)
    converters.run(plan, tmp_path / "1.gguf")
    export(tmp_path / "1.gguf", tmp_path / "back")
    same_weights(folder, tmp_path / "back")


def scaled(config: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: values / 50 for name, values in llama_tensors({**CONFIG, **config}).items()}


@pytest.mark.parametrize(("outtype", "dtype"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "F16")])
def test_the_type_of_the_file_is_the_folders(outtype: str, dtype: str, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", tensors=scaled({}))
    first = convert(folder, tmp_path / "1.gguf", outtype)
    export(first, tmp_path / "back")
    tensors = open_checkpoint(tmp_path / "back").tensors
    assert {len(one.shape): one.dtype for one in tensors.values()} == {1: "F32", 2: dtype}
    if outtype != "q8_0":
        same_model(first, convert(tmp_path / "back", tmp_path / "2.gguf", "auto"))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_quantized_tensors_are_dequantized(dtype: str, tmp_path: Path) -> None:
    first = convert(write_llama(tmp_path / "m", tensors=scaled({})), tmp_path / "1.gguf", "q8_0")
    export(first, tmp_path / "back", dtype)
    second = convert(tmp_path / "back", tmp_path / "2.gguf", "f32")
    close = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    with open_gguf(first) as f, open_gguf(second) as g:
        for name in f.tensors:
            np.testing.assert_allclose(g.array(name), f.array(name), rtol=close, atol=1e-7 if close else 0)


def test_shards(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back", max_shard_bytes=20_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 5 and all(path.stat().st_size < 45_000 for path in files)  # the embedding alone has 38400
    same_weights(folder, tmp_path / "back")


def test_the_result_says_what_was_written(tmp_path: Path) -> None:
    with open_gguf(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf")) as f:
        told: list[tuple[int, int, str]] = []
        result = run_export(plan_export(f), tmp_path / "back", lambda *words: told.append(words))
    sizes = {one["name"]: one["size_bytes"] for one in result.files}
    assert sizes == {p.name: p.stat().st_size for p in (tmp_path / "back").iterdir()}
    assert sum(sizes.values()) == result.size_bytes == told[-1][0] == told[-1][1]
    assert json.loads(json.dumps(result.as_json()))["tensors"][0]["name"] == "model.embed_tokens.weight"


@pytest.mark.parametrize("context", [64, 1000, 65536])
def test_llama3_factors_of_any_context_are_found(context: int, tmp_path: Path) -> None:
    rope = {**LLAMA3, "original_max_position_embeddings": context, "low_freq_factor": 2.0, "high_freq_factor": 7.0}
    folder = write_llama(tmp_path / "m", {"rope_parameters": rope, "head_dim": 128})
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back")
    second = convert(tmp_path / "back", tmp_path / "2.gguf")
    with open_gguf(first) as f, open_gguf(second) as g:
        np.testing.assert_allclose(f.array("rope_freqs.weight"), g.array("rope_freqs.weight"), rtol=1e-5)


def test_the_old_key_of_linear_scaling(tmp_path: Path) -> None:
    first = convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf")
    assert export(changed(first, key("llama.rope.scale_linear", 4.0)), tmp_path / "back") == []
    rope = json.loads((tmp_path / "back" / "config.json").read_text())["rope_parameters"]
    assert rope == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def test_yarn_that_became_divisors_stays_divisors(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", {"rope_parameters": {**YARN, "beta_fast": 24.0}})
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back")
    with open_gguf(first) as f, open_gguf(convert(tmp_path / "back", tmp_path / "2.gguf")) as g:
        np.testing.assert_array_equal(f.array("rope_freqs.weight"), g.array("rope_factors_long.weight"))
        assert f.metadata["llama.rope.scaling.attn_factor"] == g.metadata["llama.rope.scaling.attn_factor"]


def test_other_divisors_are_given_as_they_are(tmp_path: Path) -> None:
    factors = np.array([1.0, 5.0, 2.0, 3.5], np.float32)
    path = changed(
        convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"),
        lambda keys, tensors: tensors.update({"rope_freqs.weight": factors}),
    )
    export(path, tmp_path / "back")
    rope = json.loads((tmp_path / "back" / "config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["long_factor"] == rope["short_factor"] == factors.tolist()
    with open_gguf(convert(tmp_path / "back", tmp_path / "2.gguf")) as f:
        np.testing.assert_array_equal(f.array("rope_factors_short.weight"), factors)


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_divisors_beside_another_rule_are_refused(tmp_path: Path, kind: str) -> None:
    def both(keys: dict, tensors: dict) -> None:
        tensors["rope_freqs.weight"] = np.array([1.0, 5.0, 2.0, 3.5], np.float32)
        keys["llama.rope.scaling.type"] = (kind, (GGUFValueType.STRING,))
        keys["llama.rope.scaling.factor"] = (4.0, (GGUFValueType.FLOAT32,))
        keys["llama.rope.scaling.original_context_length"] = (64, (GGUFValueType.UINT32,))

    path = changed(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), both)
    with pytest.raises(LiquidError, match=f"rope_freqs.weight beside rope.scaling.type '{kind}'"), open_gguf(path) as f:
        plan_export(f)


# tokenizers and what lies beside the weights


def test_sentencepiece_comes_back_in_both_files(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    folder = write_llama(
        tmp_path / "m", {"vocab_size": 300}, tokenizer=sentencepiece_tokenizer(), tokenizer_config=settings
    )
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(defined=("\u2581\u2581",)))
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back")
    with open_gguf(first) as f, open_gguf(convert(tmp_path / "back", tmp_path / "2.gguf")) as g:
        for key in ("tokens", "scores", "token_type", "add_bos_token", "bos_token_id", "eos_token_id"):
            assert f.metadata[f"tokenizer.ggml.{key}"] == g.metadata[f"tokenizer.ggml.{key}"], key
    merges = json.loads((tmp_path / "back" / "tokenizer.json").read_text())["model"]["merges"]
    assert merges[0] == ["h", "e"] and ["he", "ll"] in merges and ["\u2581", "hello"] in merges


def test_added_tokens_stand_in_the_models_vocabulary_where_numbers_have_gaps(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = write_llama(tmp_path / "m")
    words = json.loads((folder / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    words["added_tokens"] += [{"id": 290, "content": "<a b>", "special": False, **plain},
                              {"id": 295, "content": "<|x|>", "special": True, **plain}]  # fmt: skip
    write_json(folder / "tokenizer.json", words)
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert made.encode("<|x|>h<a b>").ids == [295, words["model"]["vocab"]["h"], 290]
    same_model(first, convert(tmp_path / "back", tmp_path / "2.gguf"))


def test_templates_ends_sampling_and_card_come_back(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 5], "temperature": 0.5, "top_k": 20})
    (folder / "README.md").write_text('---\nlicense: apache-2.0\nlanguage: [en, "no"]\n---\n# Hello\n')
    first = convert(folder, tmp_path / "1.gguf")
    export(first, tmp_path / "back")
    second = convert(tmp_path / "back", tmp_path / "2.gguf")
    same_model(first, second)
    with open_gguf(first) as f, open_gguf(second) as g:
        for key in ("general.license", "general.languages", "general.sampling.temp", "general.sampling.top_k"):
            assert f.metadata[key] == g.metadata[key]
        assert g.metadata["tokenizer.ggml.eot_token_id"] == 5
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 5]


def test_a_model_without_a_tokenizer_is_exported_without_one(tmp_path: Path) -> None:
    plan = converters.plan(write_llama(tmp_path / "m"), "f32", tokenizer=False)
    converters.run(plan, tmp_path / "1.gguf")
    assert "no tokenizer" in export(tmp_path / "1.gguf", tmp_path / "back")[0]
    assert not (tmp_path / "back" / "tokenizer.json").exists()


# what cannot be exported


def changed(path: Path, change: Callable[[dict, dict], None]) -> Path:
    """The file with other keys and tensors; values as numpy arrays and gguf writes them."""
    import gguf

    with open_gguf(path) as f:
        keys = {key: (value, f.metadata_types[key]) for key, value in f.metadata.items()}
        tensors = {name: f.array(name).copy() for name in f.tensors}
    change(keys, tensors)
    out = path.with_name("changed.gguf")
    writer = gguf.GGUFWriter(out, keys["general.architecture"][0])
    for key, (value, kinds) in keys.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def drop(name: str) -> Callable[[dict, dict], None]:
    return lambda keys, tensors: tensors.pop(name)


def add(name: str, *shape: int) -> Callable[[dict, dict], None]:
    return lambda keys, tensors: tensors.update({name: np.ones(shape, np.float32)})


def key(name: str, value: Any) -> Callable[[dict, dict], None]:
    import gguf

    kinds = {str: "STRING", int: "UINT32", float: "FLOAT32"}
    return lambda keys, tensors: keys.update({name: (value, (gguf.GGUFValueType[kinds[type(value)]],))})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (add("blk.0.extra.weight", 4), IntegrityError, r"no place for: 1 tensors: blk\.0\.extra\.weight"),
        (drop("blk.1.ffn_up.weight"), IntegrityError, r"blk\.1\.ffn_up\.weight"),
        (add("blk.0.attn_q.bias", 32), IntegrityError, "lacks"),
        (key("llama.rope.scaling.type", "dynamic"), IntegrityError, "dynamic"),
        (key("llama.rope.scaling.attn_factor", 1.5), LiquidError, "rope.scaling.type 'none'"),
        (key("tokenizer.ggml.pre", "viking"), LiquidError, "pre-tokenizer 'viking'"),
        (key("tokenizer.ggml.model", "t5"), LiquidError, "kind 't5'"),
        (key("llama.rope.dimension_count", 4), IntegrityError, "dimension_count is 4"),
    ],
)
def test_what_has_no_way_back_is_refused(change: Callable, error: type, match: str, tmp_path: Path) -> None:
    path = changed(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), change)
    with pytest.raises(error, match=match), open_gguf(path) as f:
        run_export(plan_export(f), tmp_path / "back")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1.gguf", "changed.gguf", "m"]


def test_unknown_keys_are_told(tmp_path: Path) -> None:
    path = changed(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), key("llama.logit_scale", 2.0))
    assert "llama.logit_scale = 2.0 is not known here" in export(path, tmp_path / "back")[0]


def test_a_template_whose_name_is_a_path_is_left_out(tmp_path: Path) -> None:
    path = changed(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), lambda keys, tensors: (
        key("tokenizer.chat_template", "{{ a }}")(keys, tensors),
        key("tokenizer.chat_template.../../evil", "{{ b }}")(keys, tensors),
    ))  # fmt: skip
    assert "no name for a file" in export(path, tmp_path / "back")[0]
    assert not list(tmp_path.rglob("*evil*"))


def test_other_architectures_and_types_are_refused(tmp_path: Path) -> None:
    first = convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf")
    with open_gguf(first) as f, pytest.raises(UsageError, match=r"'q8_0', expected one of f32, f16, bf16, auto"):
        plan_export(f, "q8_0")
    bloom = changed(first, lambda keys, tensors: keys.update(
        {name.replace("llama.", "bloom."): value for name, value in keys.items()}
        | {"general.architecture": ("bloom", keys["general.architecture"][1])}
    ))  # fmt: skip
    known = "'bloom', which is not exported; gemma3, liquid, llama"
    with pytest.raises(LiquidError, match=known), open_gguf(bloom) as f:
        plan_export(f)


@pytest.mark.parametrize("there", ["file", "folder", "link", "parent"])
def test_the_output_must_be_new(there: str, tmp_path: Path) -> None:
    first = convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf")
    out = tmp_path / "back"
    if there == "file":
        out.write_text("x")
    elif there == "folder":
        out.mkdir()
        (out / "x").write_text("x")
    elif there == "link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out = tmp_path / "no" / "back"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LiquidError), open_gguf(first) as f:
        run_export(plan_export(f), out)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    export(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").stat().st_size > 1000


def test_weights_that_are_no_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    def spoil(keys: dict, tensors: dict) -> None:
        tensors["blk.1.ffn_down.weight"][3, 3] = np.nan

    path = changed(convert(write_llama(tmp_path / "m"), tmp_path / "1.gguf"), spoil)
    with pytest.raises(IntegrityError, match="not finite"), open_gguf(path) as f:
        run_export(plan_export(f), tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))


def test_numbers_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    weights = llama_tensors()
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    folder = write_llama(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
    first = convert(folder, tmp_path / "1.gguf")
    with pytest.raises(IntegrityError, match="beyond the range of F16"):
        export(first, tmp_path / "back", "f16")
    export(first, tmp_path / "back", "bf16")
