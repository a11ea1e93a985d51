"""A pack joined to its base: nothing of the base changes, adapters take its types, other bases are refused."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError, UsageError
from liquidcli.gates.apply import adapter_type, apply_pack
from liquidcli.gates.pack import Pack, write_pack
from liquidcli.gates.show import describe_gates
from liquidcli.gguf_file import check_loadable, open_gguf
from liquidcli.quant.types import NEEDS_IMATRIX
from tests.gate_packs import tiny_pack, write_base, write_tiny_pack
from tests.gguf_bytes import ARRAY, BOOL, FLOAT32, Q8_0, STRING, UINT32, Tensor, f32, llama


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.gguf")


@pytest.fixture
def pack(tmp_path, base):
    return write_tiny_pack(tmp_path / "pack.gguf", base, always_run_tokens=4)


def test_the_base_is_copied_byte_for_byte_and_its_keys_renamed(tmp_path, base, pack):
    result = apply_pack(base, pack, tmp_path / "out.gguf")
    assert result["gates"] == 2 and result["size_bytes"] == (tmp_path / "out.gguf").stat().st_size
    with open_gguf(base) as f, open_gguf(tmp_path / "out.gguf") as g:
        check_loadable(g)
        assert list(g.tensors)[: len(f.tensors)] == list(f.tensors)
        for name in f.tensors:
            assert f.raw(name).tobytes() == g.raw(name).tobytes()
        renamed = {k.replace("llama.", "liquid."): v for k, v in f.metadata.items() if k != "general.architecture"}
        assert renamed.items() <= g.metadata.items()
        assert g.architecture == "liquid" and not any(key.startswith("llama.") for key in g.metadata)
        assert g.metadata["liquid.rope.type"] == "norm" and g.metadata["liquid.attention.qk_norm"] == "none"
        assert not any(key.startswith("depth_gates.") for key in g.metadata)


def test_keys_are_copied_even_where_they_are_no_utf8(tmp_path, base, pack):
    g = llama(4)
    raw = g.build().replace(b"t7", b"\xff\xfe")
    base.write_bytes(raw)
    apply_pack(base, pack, tmp_path / "out.gguf")
    assert b"\xff\xfe" in (tmp_path / "out.gguf").read_bytes()


def test_the_gates_arrive(tmp_path, base, pack):
    apply_pack(base, pack, tmp_path / "out.gguf")
    made, told = describe_gates(pack), describe_gates(tmp_path / "out.gguf")
    assert told.depth == made.depth and not told.is_pack
    assert [gate.adapter_type for gate in told.gates] == ["F32", "F32"]
    with open_gguf(pack) as f, open_gguf(tmp_path / "out.gguf") as g:
        for name in f.tensors:
            np.testing.assert_array_equal(f.array(name), g.array(name))


@pytest.mark.parametrize("name", ["blk.1.attn_k.weight", "blk.2.ffn_down.weight", "token_embd.weight"])
def test_a_base_without_one_of_its_tensors_is_refused_by_its_name(tmp_path, pack, name):
    broken = llama(4)
    del broken.tensors[name]
    path = broken.write(tmp_path / "broken.gguf")
    with pytest.raises(IntegrityError, match=f"{path}: the tensor '{name}' is missing"):
        apply_pack(path, pack, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def _quantized(kind: int, block: int, block_bytes: int, n_embd: int, n_ff: int):
    g = llama(4, n_embd=n_embd, n_ff=n_ff)
    for i in range(4):
        for name, shape in (("ffn_gate", (n_embd, n_ff)), ("ffn_up", (n_embd, n_ff)), ("ffn_down", (n_ff, n_embd))):
            size = n_embd * n_ff // block * block_bytes
            g.tensors[f"blk.{i}.{name}.weight"] = Tensor(shape, bytes(size), kind)
    return g


@pytest.mark.parametrize(("kind", "block", "block_bytes", "n_embd", "n_ff", "role", "row", "expected"), [
    (Q8_0, 32, 34, 64, 96, "depth_skip_gate", 64, T.Q8_0),
    (12, 256, 144, 256, 512, "depth_skip_up", 256, T.Q4_K),
    (12, 256, 144, 256, 512, "depth_skip_down", 64, T.Q5_0),
    (14, 256, 210, 256, 512, "depth_skip_down", 96, T.Q8_0),
    (3, 32, 20, 64, 96, "depth_skip_down", 32, T.Q4_1),
    (3, 32, 20, 64, 96, "depth_skip_gate", 48, T.F16),
])  # fmt: skip
def test_adapters_take_the_type_beside_them_or_its_fallback(
    tmp_path, kind, block, block_bytes, n_embd, n_ff, role, row, expected
):
    base = _quantized(kind, block, block_bytes, n_embd, n_ff).write(tmp_path / "q.gguf")
    with open_gguf(base) as f:
        assert adapter_type(f, f"blk.1.{role}.weight", row) is expected


@pytest.mark.parametrize("kind", NEEDS_IMATRIX)
def test_adapters_are_of_no_type_that_needs_an_importance_matrix(tmp_path, kind):
    """ggml would end the process for some of them, and write garbage for the others."""
    base = _quantized(kind, *GGML_QUANT_SIZES[kind], 256, 512).write(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base)
    apply_pack(base, pack, tmp_path / "out.gguf")
    with open_gguf(pack) as f, open_gguf(tmp_path / "out.gguf") as g:
        for name in (name for name in f.tensors if "depth_skip" in name):
            assert g.tensors[name].type is T.IQ4_NL
            given = f.array(name)
            assert np.abs(g.array(name) - given).max() < 0.1 * np.abs(given).max()


def test_a_fine_tune_of_the_same_shape_is_refused_and_nothing_is_written(tmp_path, pack):
    g = llama(4)
    g.tensors["blk.2.ffn_norm.weight"] = f32(32, seed=50)
    with pytest.raises(IntegrityError, match="fine-tune") as error:
        apply_pack(g.write(tmp_path / "tuned.gguf"), pack, tmp_path / "out.gguf")
    assert error.value.exit_code == 6 and "\n" not in error.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "pack.gguf", "tuned.gguf"]


def test_another_shape_is_refused_by_its_name(tmp_path, pack):
    other = write_base(tmp_path / "other.gguf", n_layer=5)
    with pytest.raises(IntegrityError, match="file's block count is 5, the pack's 4"):
        apply_pack(other, pack, tmp_path / "out.gguf")


def test_another_architecture_is_refused(tmp_path, pack):
    other = write_base(tmp_path / "other.gguf", arch="qwen2")
    with pytest.raises(IntegrityError, match="file's architecture is qwen2, the pack's llama"):
        apply_pack(other, pack, tmp_path / "out.gguf")
    unknown = write_base(tmp_path / "unknown.gguf", arch="phi3")
    with pytest.raises(UsageError, match="phi3"):
        apply_pack(unknown, pack, tmp_path / "out.gguf")


def test_a_liquid_model_gets_no_second_gates(tmp_path, base, pack):
    apply_pack(base, pack, tmp_path / "once.gguf")
    with pytest.raises(UsageError, match="already"):
        apply_pack(tmp_path / "once.gguf", pack, tmp_path / "twice.gguf")


def test_the_input_is_not_overwritten(tmp_path, base, pack):
    before = base.read_bytes()
    for victim in (base, pack):
        with pytest.raises(UsageError):
            apply_pack(base, pack, victim)
    assert base.read_bytes() == before


def test_low_rank_updates_are_merged(tmp_path, base):
    tiny = tiny_pack(base)
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in ((2, 32), (64, 2)))
    name = "blk.1.ffn_up.weight"
    tensors = {**tiny.tensors, f"{name}.lora_a": a, f"{name}.lora_b": b}
    write_pack(tmp_path / "lora.gguf", Pack(tiny.base, tiny.depth, tensors))
    assert apply_pack(base, tmp_path / "lora.gguf", tmp_path / "out.gguf")["merged"] == [name]
    with open_gguf(base) as f, open_gguf(tmp_path / "out.gguf") as g:
        np.testing.assert_allclose(g.array(name), f.array(name) + b @ a, rtol=1e-6)
        assert not any("lora" in tensor for tensor in g.tensors)


def test_an_update_of_what_the_base_has_not_is_refused(tmp_path, base):
    tiny, name = tiny_pack(base), "blk.1.ffn_side.weight"
    update = {f"{name}.lora_{side}": np.zeros((32, 32), np.float32) for side in "ab"}
    write_pack(tmp_path / "lora.gguf", Pack(tiny.base, tiny.depth, {**tiny.tensors, **update}))
    with pytest.raises(IntegrityError, match=r"updates 'blk.1.ffn_side.weight', which .* has not"):
        apply_pack(base, tmp_path / "lora.gguf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_update_is_not_merged_into_a_type_that_needs_an_importance_matrix(tmp_path):
    base = _quantized(T.IQ2_XXS, *GGML_QUANT_SIZES[T.IQ2_XXS], 256, 512).write(tmp_path / "base.gguf")
    tiny, name = tiny_pack(base), "blk.1.ffn_up.weight"
    update = {f"{name}.lora_a": np.ones((2, 256), np.float32), f"{name}.lora_b": np.ones((512, 2), np.float32)}
    write_pack(tmp_path / "lora.gguf", Pack(tiny.base, tiny.depth, {**tiny.tensors, **update}))
    with pytest.raises(UsageError, match="cannot be merged: IQ2_XXS needs an importance matrix"):
        apply_pack(base, tmp_path / "lora.gguf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def gemma3(folder, n_layer=8, **keys):
    g = llama(n_layer, arch="gemma3")
    g.keys |= {f"gemma3.{name.replace('__', '.')}": content for name, content in keys.items()}
    for i in range(n_layer):
        for name, size in (("post_attention", 32), ("post_ffw", 32), ("attn_q", 8), ("attn_k", 8)):
            g.tensors[f"blk.{i}.{name}_norm.weight"] = f32(size, seed=i)
    base = g.write(folder / "gemma3.gguf")
    pack = write_tiny_pack(folder / "pack.gguf", base, spans=(0, 1, *[0] * (n_layer - 2)))
    apply_pack(base, pack, folder / "out.gguf")
    with open_gguf(folder / "out.gguf") as f:
        check_loadable(f)
        return {key.removeprefix("liquid."): value for key, value in f.metadata.items()}


def test_gemma_bases_are_told_what_llama_cpp_derives(tmp_path):
    keys = gemma3(tmp_path, attention__sliding_window=(UINT32, 16))
    assert keys["feed_forward.activation"] == "gelu" and keys["attention.qk_norm"] == "head"
    assert keys["rope.type"] == "neox" and keys["rope.freq_base_swa"] == 10000.0
    assert keys["embedding_scale"] == np.sqrt(np.float32(32)) and keys["attention.scale"] == 1 / np.sqrt(np.float32(8))
    assert keys["attention.sliding_window_pattern"] == [True] * 5 + [False] + [True] * 2


def test_what_a_gemma_base_says_itself_is_kept(tmp_path):
    pattern = (ARRAY, (BOOL, [True, False] * 4))
    said = {"attention__sliding_window": (UINT32, 16), "attention__sliding_window_pattern": pattern}
    keys = gemma3(tmp_path, **said, rope__freq_base_swa=(FLOAT32, 500.0), final_logit_softcapping=(FLOAT32, 30.0))
    assert keys["rope.freq_base_swa"] == 500.0 and keys["attention.sliding_window_pattern"] == [True, False] * 4
    assert keys["final_logit_softcapping"] == 30.0
    keys = gemma3(tmp_path, attention__sliding_window=(UINT32, 16), attention__sliding_window_pattern=(UINT32, 3))
    assert keys["attention.sliding_window_pattern"] == [True, True, False, True, True, False, True, True]


def test_gemma_without_windows(tmp_path):
    keys = gemma3(tmp_path)
    assert keys["attention.window_type"] == "none" and "rope.freq_base_swa" not in keys


def test_mixture_bases_are_told_what_llama_cpp_derives(tmp_path):
    g = llama(4)
    g.keys["llama.expert_count"], g.keys["llama.expert_used_count"] = (UINT32, 2), (UINT32, 1)
    for i in range(4):
        g.tensors[f"blk.{i}.ffn_gate_inp.weight"] = f32(32, 2)
        for name in ("ffn_gate", "ffn_up", "ffn_down"):
            g.tensors[f"blk.{i}.{name}_exps.weight"] = f32(*g.tensors.pop(f"blk.{i}.{name}.weight").shape, 2)
    base = g.write(tmp_path / "moe.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base)
    apply_pack(base, pack, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as f:
        assert f.metadata["liquid.expert_gating_func"] == 1 and f.metadata["liquid.expert_weights_norm"] is True


def test_depth_keys_have_the_types_of_the_architecture_page(tmp_path, base, pack):
    apply_pack(base, pack, tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as f:
        kinds = {key.removeprefix("liquid.depth."): f.metadata_types[key] for key in f.metadata if ".depth." in key}
    assert kinds["threshold"] == (FLOAT32,) and kinds["min_layers"] == (UINT32,)
    assert kinds["gate_kind"] == (STRING,) and kinds["ffn_scaled_by_gate"] == (BOOL,)
    assert kinds["gate_span"][1] == UINT32 and kinds["calibration.threshold"][1] == FLOAT32
