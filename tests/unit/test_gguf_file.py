"""The GGUF reader on right files: keys of every kind, tensors of every layout, split models."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from liquidcli.errors import IntegrityError, NotFoundError
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.gguf_bytes import (
    ARRAY,
    BOOL,
    F16,
    FLOAT32,
    INT32,
    Q8_0,
    STRING,
    UINT16,
    UINT32,
    GGUFBytes,
    Tensor,
    f32,
    liquid,
    llama,
)


def test_reads_what_the_gguf_package_writes(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("flags", [True, False])
    writer.add_array("words", ["a", "ü", ""])
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("w", weights)
    writer.add_tensor("h", weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(tmp_path / "a.gguf") as f:
        expected = {"u8": 200, "i64": -(1 << 40), "f64": 0.1, "flags": [True, False], "words": ["a", "ü", ""]}
        assert {key: f.metadata[key] for key in expected} == expected
        assert f.metadata_types["words"] == (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
        assert f.tensors["w"].shape == (4, 3)
        np.testing.assert_array_equal(f.array("w"), weights)
        np.testing.assert_array_equal(f.array("h"), weights)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q6_K", "BF16"])
def test_array_dequantizes(tmp_path, kind):
    quant = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    rng = np.random.default_rng(1)
    if kind == "Q6_K":
        raw = rng.integers(0, 60, (3, 2, 256 // block * block_bytes), dtype=np.uint8)  # a finite F16 scale
    else:
        raw = gguf.quants.quantize(rng.standard_normal((3, 2, 256)).astype(np.float32), quant).view(np.uint8)
    g = GGUFBytes({"general.architecture": (STRING, "llama")}, {"w": Tensor((256, 2, 3), raw.tobytes(), int(quant))})
    with open_gguf(g.write(tmp_path / "q.gguf")) as f:
        found = f.array("w")
        assert found.shape == (3, 2, 256) and found.dtype == np.float32
        np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, quant).reshape(3, 2, 256))


def test_raw_is_the_bytes_of_the_file(tmp_path):
    payload = bytes(range(34)) * 2
    g = GGUFBytes({"general.architecture": (STRING, "llama")}, {"a": f32(3), "w": Tensor((32, 2), payload, Q8_0)})
    with open_gguf(g.write(tmp_path / "r.gguf")) as f:
        assert f.raw("w").tobytes() == payload
        assert f.tensors["w"].size_bytes == 68
        with pytest.raises(NotFoundError, match="no tensor 'b'"):
            f.raw("b")


def test_raw_value_keeps_undecodable_bytes(tmp_path):
    g = llama()
    g.keys["tokenizer.ggml.tokens"] = (ARRAY, (STRING, [b"\xff", b"\xfe", *[f"t{i}".encode() for i in range(14)]]))
    with open_gguf(g.write(tmp_path / "u.gguf")) as f:
        assert f.metadata["tokenizer.ggml.tokens"][0] == f.metadata["tokenizer.ggml.tokens"][1]
        assert b"\xff" in f.raw_value("tokenizer.ggml.tokens")
        check_loadable(f)  # the two differ in the file: no duplicate


def test_alignment_key_moves_the_data(tmp_path):
    keys = {"general.architecture": (STRING, "llama"), "general.alignment": (UINT32, 256)}
    g = GGUFBytes(keys, {"a": f32(3), "b": f32(5)}, alignment=256)
    with open_gguf(g.write(tmp_path / "a.gguf")) as f:
        assert [t.offset % 256 for t in f.tensors.values()] == [0, 0]
        assert f.raw("b").tobytes() == g.tensors["b"].data


def shards(folder, n=3):
    """A split model of `n` files with one tensor each."""
    paths = []
    for no in range(n):
        keys = {"split.no": (UINT16, no), "split.count": (UINT16, n), "split.tensors.count": (INT32, n)}
        if no == 0:
            keys["general.architecture"] = (STRING, "llama")
        g = GGUFBytes(keys, {f"t{no}": f32(4, seed=no)})
        paths.append(g.write(folder / f"m-{no + 1:05d}-of-{n:05d}.gguf"))
    return paths


def test_split_model_is_one_model(tmp_path):
    paths = shards(tmp_path)
    with open_gguf(paths[0]) as f:
        assert list(f.tensors) == ["t0", "t1", "t2"] and f.paths == paths
        assert f.raw("t2").tobytes() == f32(4, seed=2).data
        assert f.size_bytes == sum(p.stat().st_size for p in paths)


def test_missing_shard_is_named(tmp_path):
    paths = shards(tmp_path)
    paths[1].unlink()
    with pytest.raises(NotFoundError, match=r"shard 2 of 3 is missing: .*m-00002-of-00003.gguf"):
        open_gguf(paths[0])


def test_later_shard_points_to_the_first(tmp_path):
    with pytest.raises(IntegrityError) as failure:
        open_gguf(shards(tmp_path)[1])
    assert "m-00001-of-00003.gguf" in failure.value.hint


def test_shards_of_two_models_do_not_mix(tmp_path):
    paths = shards(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(IntegrityError, match="is not shard 2"):
        open_gguf(paths[0])


def test_imatrix_files_have_no_architecture(tmp_path):
    path = GGUFBytes({"general.type": (STRING, "imatrix")}, {"a": f32(3)}).write(tmp_path / "i.gguf")
    with pytest.raises(IntegrityError, match=r"no general\.architecture"):
        open_gguf(path)
    assert open_gguf(path, require_architecture=False).metadata["general.type"] == "imatrix"


@pytest.mark.parametrize("g", [llama(), liquid(), liquid(kind="bottleneck"), liquid(spans=(0, 0, 0, 0))])
def test_right_files_are_loadable(tmp_path, g):
    with open_gguf(g.write(tmp_path / "m.gguf")) as f:
        check_loadable(f)


def test_a_file_without_tokenizer_passes_only_when_asked(tmp_path):
    g = llama()
    g.keys = {key: pair for key, pair in g.keys.items() if not key.startswith("tokenizer.")}
    g.keys["tokenizer.ggml.model"] = (STRING, "no_vocab")
    g.keys["llama.vocab_size"] = (UINT32, 16)
    with open_gguf(g.write(tmp_path / "m.gguf")) as f:
        check_loadable(f, need_tokenizer=False)
        with pytest.raises(IntegrityError, match="takes no text"):
            check_loadable(f)


def test_optional_depth_keys_pass(tmp_path):
    g = liquid()
    g.keys["liquid.depth.ffn_scaled_by_gate"] = (BOOL, True)
    g.keys["liquid.depth.min_layers"] = (UINT32, 2)
    g.keys["liquid.depth.gate_exit"] = (ARRAY, (BOOL, [False] * 4))
    g.keys["liquid.depth.gate_scope"] = (ARRAY, (STRING, ["", "layer", "layer", ""]))
    g.keys["liquid.depth.calibration.threshold"] = (ARRAY, (FLOAT32, [0.25, 0.5]))
    g.keys["liquid.depth.calibration.executed_fraction"] = (ARRAY, (FLOAT32, [1.0, 0.75]))
    g.tensors["blk.1.depth_gate.bias"] = f32(1)
    g.tensors["blk.1.depth_gate.weight"] = Tensor((32,), bytes(64), F16)
    with open_gguf(g.write(tmp_path / "m.gguf")) as f:
        check_loadable(f)
