"""A Llama-shaped folder becomes a GGUF: the right numbers, types and keys, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from liquidcli import converters
from liquidcli.errors import DiskSpaceError, IntegrityError, LiquidError, UsageError
from liquidcli.gguf_file import GGUFFile, check_loadable, open_gguf
from tests.hf_folders import CONFIG, llama_tensors, to_bf16, write_llama

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def convert(folder: Path, outtype: str = "f32", **options) -> GGUFFile:
    converters.run(converters.plan(folder, outtype, **options), folder / "out.gguf")
    return open_gguf(folder / "out.gguf")


def pairs(w: np.ndarray, n_head: int) -> np.ndarray:
    """Row 2j of a head from row j, row 2j+1 from row j + d/2: written out, not reshaped."""
    d = len(w) // n_head
    order = [head * d + j + half * (d // 2) for head in range(n_head) for j in range(d // 2) for half in (0, 1)]
    return w[order]


def test_every_tensor_arrives_and_queries_are_interleaved(tmp_path: Path) -> None:
    source = llama_tensors()
    with convert(write_llama(tmp_path / "m", tensors=source)) as f:
        assert len(f.tensors) == len(source)
        q = source["model.layers.1.self_attn.q_proj.weight"]
        np.testing.assert_array_equal(f.array("blk.1.attn_q.weight"), pairs(q, 4))
        np.testing.assert_array_equal(
            f.array("blk.1.attn_k.weight"), pairs(source["model.layers.1.self_attn.k_proj.weight"], 2)
        )
        same = {
            "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
            "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
            "blk.0.ffn_gate.weight": "model.layers.0.mlp.gate_proj.weight",
            "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
            "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
            "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
            "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "output.weight": "lm_head.weight",
        }
        for ours, theirs in same.items():
            np.testing.assert_array_equal(f.array(ours), source[theirs], err_msg=ours)
        check_loadable(f)


@pytest.mark.parametrize(("outtype", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0"), ("f32", "F32")])
def test_matrices_take_the_type_and_norms_stay_f32(tmp_path: Path, outtype: str, kind: str) -> None:
    source = llama_tensors()
    with convert(write_llama(tmp_path / "m", tensors=source), outtype) as f:
        types = {name: info.type.name for name, info in f.tensors.items()}
        assert {types[name] for name in types if name.endswith("_norm.weight")} == {"F32"}
        assert {types[name] for name in types if not name.endswith("_norm.weight")} == {kind}
        wanted = gguf.quants.quantize(source["lm_head.weight"], gguf.GGMLQuantizationType[kind])
        assert f.raw("output.weight").tobytes() == wanted.tobytes()
        assert gguf.LlamaFileType(f.metadata["general.file_type"]).name.endswith(kind)


def test_rows_that_do_not_divide_into_blocks_fall_back_to_f16(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "m", {"intermediate_size": 48}), "q8_0") as f:
        assert f.tensors["blk.0.ffn_down.weight"].type.name == "F16"
        assert f.tensors["blk.0.ffn_up.weight"].type.name == "Q8_0"


@pytest.mark.parametrize(("dtype", "outtype"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "f16"), ("F64", "f16")])
def test_auto_keeps_a_16_bit_type(tmp_path: Path, dtype: str, outtype: str) -> None:
    assert converters.plan(write_llama(tmp_path / "m", dtype=dtype), "auto").outtype == outtype


def test_bf16_bits_pass_through_unchanged(tmp_path: Path) -> None:
    source = llama_tensors()
    with convert(write_llama(tmp_path / "m", tensors=source, dtype="BF16"), "bf16") as f:
        wanted = to_bf16(source["model.layers.0.mlp.up_proj.weight"])
        assert f.raw("blk.0.ffn_up.weight").tobytes() == wanted.tobytes()
        exact = to_bf16(source["model.norm.weight"]).astype(np.uint32) << 16
        np.testing.assert_array_equal(f.array("output_norm.weight"), exact.view(np.float32))


def test_shards_say_what_one_file_says(tmp_path: Path) -> None:
    one, three = write_llama(tmp_path / "a" / "m"), write_llama(tmp_path / "b" / "m", n_shards=3)
    with convert(one) as f, convert(three) as g:
        assert f.path.read_bytes() == g.path.read_bytes()


def test_big_tensors_stream_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_llama(tmp_path / "m")
    whole = converters.run(converters.plan(folder, "q8_0"), tmp_path / "whole.gguf")
    monkeypatch.setattr(sys.modules[converters.Result.__module__], "PIECE_BYTES", 1000)
    seen: list[tuple[int, int, str]] = []
    pieces = converters.run(converters.plan(folder, "q8_0"), tmp_path / "pieces.gguf", lambda *args: seen.append(args))
    assert whole.sha256 == pieces.sha256
    assert len(seen) > 3 * len(pieces.tensors)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen) and seen[-1][0] <= seen[-1][1]


def test_the_result_tells_the_truth(tmp_path: Path) -> None:
    what = converters.plan(write_llama(tmp_path / "m"), "f16")
    result = converters.run(what, tmp_path / "out.gguf")
    data = (tmp_path / "out.gguf").read_bytes()
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert result.size_bytes == len(data) == what.size_bytes
    told = result.as_json()
    assert list(told) == ["input", "output", "size_bytes", "sha256", "tensors", "seconds"]
    assert json.loads(json.dumps(what.as_json()))["parameters"] == what.parameters
    shapes = {one["name"]: one["shape"] for one in told["tensors"]}
    assert shapes["blk.0.ffn_down.weight"] == [64, 32]  # ggml order: the fastest axis first


def test_metadata(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "Tiny-2M-Chat", {"rope_theta": 5000.0, "num_key_value_heads": None,
                             "num_attention_heads": 2})) as f:  # fmt: skip
        wanted = {
            "general.architecture": "llama", "general.type": "model", "general.name": "Tiny 2M Chat",
            "general.quantization_version": 2, "llama.block_count": 2, "llama.context_length": 128,
            "llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 5000.0, "llama.vocab_size": 300,
            "llama.attention.key_length": 16, "llama.attention.value_length": 16, "llama.rope.dimension_count": 16,
        }  # fmt: skip
        assert {key: f.metadata[key] for key in wanted} == wanted
        assert f.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
        assert f.metadata_types["llama.block_count"] == (gguf.GGUFValueType.UINT32,)
        assert "llama.rope.scaling.type" not in f.metadata


def test_head_dim_of_its_own(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "m", {"head_dim": 24})) as f:
        assert f.metadata["llama.attention.key_length"] == f.metadata["llama.rope.dimension_count"] == 24
        assert f.tensors["blk.0.attn_q.weight"].shape == (32, 96)


def test_tied_embeddings_leave_the_head_out(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "m", {"tie_word_embeddings": True})) as f:
        assert "output.weight" not in f.tensors


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path: Path) -> None:
    source = llama_tensors({**CONFIG, "tie_word_embeddings": True})
    source["lm_head.weight"] = source["model.embed_tokens.weight"].copy()
    what = converters.plan(write_llama(tmp_path / "m", {"tie_word_embeddings": True}, tensors=source), "f16")
    assert [(one.source.name, one.reason) for one in what.dropped] == [("lm_head.weight", "tied to the embedding")]
    converters.run(what, tmp_path / "out.gguf")
    source["lm_head.weight"][0, 0] += 1
    what = converters.plan(write_llama(tmp_path / "m", {"tie_word_embeddings": True}, tensors=source), "f16")
    with pytest.raises(IntegrityError, match=r"tied to model\.embed_tokens\.weight"):
        converters.run(what, tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def test_biases(tmp_path: Path) -> None:
    source = llama_tensors()
    for i in range(2):
        for name, size in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            source[f"model.layers.{i}.self_attn.{name}_proj.bias"] = np.arange(size, dtype=np.float32)
        for name, size in (("gate", 64), ("up", 64), ("down", 32)):
            source[f"model.layers.{i}.mlp.{name}_proj.bias"] = np.arange(size, dtype=np.float32)
    with convert(write_llama(tmp_path / "m", {"attention_bias": True, "mlp_bias": True}, tensors=source), "f16") as f:
        assert f.array("blk.0.attn_q.bias")[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
        assert f.array("blk.0.attn_v.bias").tolist() == list(range(16))
        assert f.tensors["blk.1.ffn_down.bias"].type.name == "F32"


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_becomes_a_tensor(tmp_path: Path, spelling: str) -> None:
    theta = {"rope_theta": 500000.0}
    words = {spelling: {**LLAMA3, **(theta if spelling == "rope_parameters" else {})}, **theta}
    with convert(write_llama(tmp_path / "m", words), "f16") as f:
        factors = f.array("rope_freqs.weight")
        wavelengths = 2 * np.pi * 500000.0 ** (np.arange(4) * 2 / 8)
        assert f.tensors["rope_freqs.weight"].type.name == "F32"
        assert factors[wavelengths < 64 / 4].tolist() == [1.0]
        assert factors[wavelengths > 64].tolist() == [8.0] * 3
        assert "llama.rope.scaling.type" not in f.metadata


def test_smooth_part_of_llama3_scaling(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "m", {"rope_theta": 300.0, "rope_scaling": LLAMA3})) as f:
        wavelength = 2 * np.pi * 300.0 ** (2 / 8)
        smooth = (64 / wavelength - 1) / 3
        assert f.array("rope_freqs.weight")[1] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-6)


def test_linear_and_yarn_scaling(tmp_path: Path) -> None:
    with convert(write_llama(tmp_path / "a", {"rope_scaling": {"type": "linear", "factor": 2.0}})) as f:
        assert f.metadata["llama.rope.scaling.type"] == "linear" and f.metadata["llama.rope.scaling.factor"] == 2.0
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5}
    with convert(write_llama(tmp_path / "b", {"rope_scaling": yarn})) as f:
        assert f.metadata["llama.rope.scaling.type"] == "yarn"
        assert f.metadata["llama.rope.scaling.original_context_length"] == 32
        own = 0.1 * np.log(4.0) + 1
        assert f.metadata["llama.rope.scaling.attn_factor"] == pytest.approx(1.5 / own)


def test_values_beyond_f16_are_refused_not_made_infinite(tmp_path: Path) -> None:
    source = llama_tensors()
    source["lm_head.weight"][3, 3] = 1e6
    folder = write_llama(tmp_path / "m", tensors=source)
    with pytest.raises(IntegrityError, match=r"lm_head\.weight holds values beyond the range of F16") as caught:
        convert(folder, "f16")
    assert "bf16" in str(caught.value.hint)
    assert not list(folder.glob("*.gguf")) and not list(folder.glob(".*part"))
    convert(folder, "bf16").close()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    source = llama_tensors()
    source["model.layers.0.mlp.up_proj.weight"][5, 5] = np.nan
    folder = write_llama(tmp_path / "m", tensors=source, dtype=dtype)
    with pytest.raises(IntegrityError, match=r"model\.layers\.0\.mlp\.up_proj\.weight holds values that are not fin"):
        convert(folder, "f32")


def test_what_changes_the_maths_is_refused(tmp_path: Path) -> None:
    for words in (
        {"hidden_act": "gelu"}, {"partial_rotary_factor": 0.5}, {"quantization_config": {"quant_method": "gptq"}},
        {"rope_scaling": {"type": "proportional", "factor": 2.0}}, {"layer_types": ["sliding_attention"] * 2},
    ):  # fmt: skip
        with pytest.raises(LiquidError, match=next(iter(words)).removesuffix("ing") + "|quantized"):
            converters.plan(write_llama(tmp_path / "m", words))


def test_unknown_keys_are_reported_and_harmless_ones_are_not(tmp_path: Path) -> None:
    words = {"use_cache": True, "initializer_range": 0.02, "nope": None, "off": False, "logit_cap": 30.0}
    warnings = converters.plan(write_llama(tmp_path / "m", words)).warnings
    assert len(warnings) == 1 and "logit_cap = 30.0 is not known" in warnings[0]


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    what = converters.plan(write_llama(tmp_path / "m"))
    with pytest.raises(UsageError, match="one of the files that are converted"):
        converters.run(what, tmp_path / "m" / "model.safetensors")


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = converters.plan(write_llama(tmp_path / "m"))
    usage = shutil.disk_usage(tmp_path)._replace(free=what.size_bytes - 1)
    monkeypatch.setattr("liquidcli.files.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError):
        converters.run(what, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_unknown_output_type(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"q4_0.*f32, f16, bf16, q8_0, auto"):
        converters.plan(write_llama(tmp_path / "m"), "q4_0")


def test_the_card_and_the_generation_settings_are_carried_along(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- no\ntags: [a, b]\n---\n# Model\n")
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 40, "top_p": true}')
    with convert(folder) as f:
        assert f.metadata["general.license"] == "apache-2.0" and f.metadata["general.languages"] == ["en", "no"]
        assert f.metadata["general.tags"] == ["a", "b"]
        assert f.metadata["general.sampling.temp"] == pytest.approx(0.6)
        assert f.metadata["general.sampling.top_k"] == 40 and "general.sampling.top_p" not in f.metadata


@pytest.mark.parametrize(
    "card", ["---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: 3\n", "\x00\x01", "---\n&a [*a]\n---\n"]
)
def test_an_odd_card_stops_nothing(tmp_path: Path, card: str) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "README.md").write_text(card)
    (folder / "generation_config.json").write_text("[1, 2")
    assert converters.plan(folder).outputs
