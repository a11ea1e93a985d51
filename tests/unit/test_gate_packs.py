"""Gate packs: what is written comes back, what is wrong is refused, and a pack knows its base through quantization."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from liquidcli import gates
from liquidcli.errors import IntegrityError
from liquidcli.gates.apply import apply_pack
from liquidcli.gates.identity import base_identity, bf16_bytes
from liquidcli.gates.pack import check_pack, read_pack, write_pack
from liquidcli.gates.show import describe_gates
from liquidcli.gguf_checks import check_loadable
from liquidcli.gguf_file import open_gguf
from tests.gate_packs import tiny_pack, write_base, write_tiny_pack
from tests.gguf_bytes import ARRAY, FLOAT32, INT32, STRING, UINT32, f32, liquid, llama


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.gguf")


def identity(path):
    with open_gguf(path) as f:
        return base_identity(f)


def test_what_is_written_comes_back(tmp_path, base):
    pack = tiny_pack(base, spans=(0, 2, 0, 1), threshold=0.25, min_layers=2, always_run_tokens=4)
    write_pack(tmp_path / "p.gguf", pack)
    found = read_pack(tmp_path / "p.gguf")
    assert found.depth == pack.depth and found.base == pack.base and found.name == "tiny gates"
    assert list(found.tensors) == list(pack.tensors)
    for name, content in pack.tensors.items():
        rounded = content.astype(np.float16) if "skip" in name else content
        np.testing.assert_array_equal(found.tensors[name], rounded.astype(np.float32))


def test_gates_are_f32_and_adapters_f16(tmp_path, base):
    with open_gguf(write_tiny_pack(tmp_path / "p.gguf", base)) as f:
        kinds = {name.split(".")[2]: info.type for name, info in f.tensors.items()}
    assert kinds == {"depth_gate": T.F32, "depth_skip_gate": T.F16, "depth_skip_up": T.F16, "depth_skip_down": T.F16}


@pytest.mark.parametrize("tensor", ["blk.1.depth_skip_down.weight", "blk.2.depth_gate.bias"])
def test_a_flipped_bit_is_seen_and_a_pack_without_a_checksum_is_taken(tmp_path, base, tensor):
    path = write_tiny_pack(tmp_path / "p.gguf", base)
    with open_gguf(path) as f:
        at = f.tensor(tensor).offset
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1  # a number a little off: no shape, no norm and no NaN tells
    path.write_bytes(raw)
    for read in (read_pack, describe_gates, lambda pack: apply_pack(base, pack, tmp_path / "m.gguf")):
        with pytest.raises(IntegrityError, match="sha256 differs"):
            read(path)
    assert not (tmp_path / "m.gguf").exists()
    path.write_bytes(raw.replace(b"depth_gates.tensors_sha256", b"depth_gates.tensors_______"))
    assert read_pack(path).base == identity(base)


def test_the_checksum_is_over_the_bytes_of_the_tensors_in_order(tmp_path, base):
    with open_gguf(write_tiny_pack(tmp_path / "p.gguf", base)) as f:
        whole = b"".join(f.raw(name).tobytes() for name in f.tensors)
        assert f.metadata["depth_gates.tensors_sha256"] == hashlib.sha256(whole).hexdigest()
        assert len(whole) == sum(info.size_bytes for info in f.tensors.values())


def test_packs_that_come_with_the_package_hold_their_checksum_and_the_order_of_their_base():
    packs = list((Path(gates.__file__).parent / "packs").glob("*.gguf"))
    assert packs
    for path in packs:
        with open_gguf(path) as f:
            assert "depth_gates.tensors_sha256" in f.metadata
        assert read_pack(path).base.order.names


def test_bf16_rounds_to_nearest_even():
    values = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32).view(np.float32)
    assert np.frombuffer(bf16_bytes(values), "<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80]


def test_the_identity_sees_each_norm(tmp_path, base):
    for name in ("blk.0.attn_norm.weight", "blk.3.ffn_norm.weight", "output_norm.weight"):
        other = llama(4)
        other.tensors[name] = f32(32, seed=99)
        difference = identity(base).difference(identity(other.write(tmp_path / "other.gguf")))
        assert "fine-tune" in difference


def test_the_identity_sees_the_order_of_norms(tmp_path, base):
    swapped = llama(4)
    one, two = "blk.1.attn_norm.weight", "blk.2.attn_norm.weight"
    swapped.tensors[one], swapped.tensors[two] = swapped.tensors[two], swapped.tensors[one]
    assert identity(swapped.write(tmp_path / "s.gguf")).norms_sha256 != identity(base).norms_sha256


def test_the_identity_names_the_shape_that_differs(tmp_path, base):
    wide = identity(write_base(tmp_path / "wide.gguf", n_ff=96))
    assert identity(base).difference(wide) == "the file's feed forward length is 96, the pack's 64"


BROKEN = {
    "a gate of another width": lambda t: t.update({"blk.1.depth_gate.weight": np.zeros(31, np.float32)}),
    "a missing gate": lambda t: t.pop("blk.2.depth_gate.weight"),
    "half an adapter": lambda t: t.pop("blk.1.depth_skip_up.weight"),
    "a gate at a layer without": lambda t: t.update({"blk.0.depth_gate.weight": np.zeros(32, np.float32)}),
    "a stranger": lambda t: t.update({"blk.1.attn_q.weight": np.zeros((32, 32), np.float32)}),
    "not a number": lambda t: t["blk.1.depth_gate.weight"].__setitem__(0, np.nan),
    "a bias for two": lambda t: t.update({"blk.1.depth_gate.bias": np.zeros(2, np.float32)}),
    "a bottleneck part in a linear gate": lambda t: t.update({"blk.1.depth_gate_norm.weight": np.zeros(8, np.float32)}),
    "the gate of a half at a whole layer": lambda t: t.update({"blk.1.depth_gate_ffn.weight": np.zeros(32, "f4")}),
    "the bias of an adapter": lambda t: t.update({"blk.1.depth_skip_gate.bias": np.zeros(32, np.float32)}),
    "a layer spelled otherwise": lambda t: t.update({"blk.01.depth_gate.weight": np.zeros(32, np.float32)}),
    "an update of an adapter": lambda t: t.update(
        {f"blk.1.depth_skip_up.weight.lora_{side}": np.zeros((32, 32), np.float32) for side in "ab"}
    ),
    "half a low-rank update": lambda t: t.update({"blk.1.ffn_up.weight.lora_a": np.zeros((2, 32), np.float32)}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_wrong_tensors_are_refused(base, what):
    pack = tiny_pack(base)
    BROKEN[what](pack.tensors)
    with pytest.raises(IntegrityError):
        check_pack(pack)


def test_adapter_sizes_are_multiples_of_32(base):
    with pytest.raises(IntegrityError, match="multiple of 32"):
        check_pack(tiny_pack(base, m=24))


@pytest.mark.parametrize("depth", [
    {"spans": (0, 0, 0, 2)}, {"spans": (2, 1, 0, 0)}, {"spans": (0, 0, 0, 0)}, {"spans": (0, 1, 0)},
    {"threshold": 1.5}, {"kv_policy": "keep"}, {"gate_kind": "cubic"}, {"gate_scope": ("layer", "head", "", "")},
    {"gate_scope": ("", "ffn", "ffn", "ffn")}, {"spans": (0, 2, 0, 0), "gate_scope": ("", "attn", "", "")},
    {"gate_exit": (False, True, False, False)}, {"gate_exit": (True, False, False, False)},
    {"spans": (0, 2, 2, 0), "gate_exit": (False, False, True, False)},
    {"calibration_threshold": (0.5, 0.5, 0.7)}, {"calibration_executed_fraction": (1.0, 0.9)},
    {"calibration_executed_fraction": (1.0, 0.9, float("nan"))},
], ids=str)  # fmt: skip
def test_wrong_keys_are_refused(base, depth):
    with pytest.raises(IntegrityError):
        check_pack(tiny_pack(base, **depth))


def test_a_bottleneck_pack_is_checked_by_its_own_shapes(base):
    rng, pack = np.random.default_rng(0), tiny_pack(base, spans=(0, 1, 0, 0), gate_kind="bottleneck")
    parts = {"_enc.weight": (8, 32), "_norm.weight": (8,), ".weight": (8,)}
    pack.tensors.update({f"blk.1.depth_gate{k}": rng.standard_normal(s).astype("f4") for k, s in parts.items()})
    check_pack(pack)
    pack.tensors["blk.1.depth_gate.weight"] = np.zeros(32, np.float32)
    with pytest.raises(IntegrityError, match=r"\[32\], \[8\]"):
        check_pack(pack)
    pack.tensors["blk.1.depth_gate_dec.weight"] = np.zeros((32, 8), np.float32)
    check_pack(pack)


HALVES = {"spans": (1, 1, 1, 1), "gate_scope": ("attn", "ffn", "attn+ffn", "")}
LEAVING = {"spans": (1, 3, 1, 0), "gate_exit": (False, True, False, False), "kv_policy": "drop"}


@pytest.mark.parametrize("depth", [HALVES, LEAVING], ids=["halves", "exit"])
def test_packs_of_halves_and_exits_come_back_and_are_applied(tmp_path, base, depth):
    pack = tiny_pack(base, **depth)
    write_pack(tmp_path / "p.gguf", pack)
    found = read_pack(tmp_path / "p.gguf")
    assert found.depth == pack.depth and list(found.tensors) == list(pack.tensors)
    said = apply_pack(base, tmp_path / "p.gguf", tmp_path / "m.gguf")
    assert said["gates"] == len(pack.depth.layout.gates())
    with open_gguf(tmp_path / "m.gguf") as f:
        check_loadable(f, need_tokenizer=False)
        assert {name for name in f.tensors if ".depth_" in name} == set(pack.tensors)
        gates = [info.type for name, info in f.tensors.items() if ".depth_gate" in name]
        assert set(gates) == {T.F32}
        assert f.metadata["liquid.depth.kv_policy"] == pack.depth.kv_policy


def test_an_adapter_where_nothing_is_adapted_is_refused(base):
    for depth in (HALVES, LEAVING):
        layer = 0 if depth is HALVES else 1
        pack = tiny_pack(base, **depth)
        pack.tensors[f"blk.{layer}.depth_skip_gate.weight"] = np.zeros((32, 32), np.float32)
        with pytest.raises(IntegrityError, match="belongs to no gate"):
            check_pack(pack)


def test_a_model_is_no_pack(tmp_path, base):
    with pytest.raises(IntegrityError, match="a gate pack was expected"):
        read_pack(base)


def test_a_pack_that_does_not_name_its_base_is_refused(tmp_path, base):
    g = llama(4)
    g.keys |= {"general.type": (STRING, "adapter"), "adapter.type": (STRING, "depth_gates")}
    with pytest.raises(IntegrityError, match="block_count"):
        read_pack(g.write(tmp_path / "p.gguf"))
    g.keys["depth_gates.base.block_count"] = (UINT32, 4)
    with pytest.raises(IntegrityError, match="version"):
        read_pack(g.write(tmp_path / "p.gguf"))


@pytest.mark.parametrize(("name", "value", "told"), [
    ("calibration.threshold", (FLOAT32, 0.5), "calibration.threshold must be a list"),
    ("min_layers", (INT32, -1), "min_layers is -1, a value of type UINT32 was expected"),
    ("always_run_tokens", (STRING, "four"), "always_run_tokens is 'four', a value of type UINT32 was expected"),
    ("gate_span", (STRING, "0110"), "gate_span is '0110', one number for each of 4 layers was expected"),
    ("gate_span", (ARRAY, (STRING, ["0", "1", "2", "0"])), "the gate at layer 0 spans '0'"),
    ("gate_scope", (ARRAY, (UINT32, [0, 1, 2, 0])), "gate_scope must hold one str"),
    ("threshold", (FLOAT32, float("nan")), "threshold is nan"),
])  # fmt: skip
def test_keys_of_another_type_are_refused(tmp_path, name, value, told):
    g = liquid()
    g.keys |= {"general.type": (STRING, "adapter"), "adapter.type": (STRING, "depth_gates")}
    g.keys |= {"depth_gates.base.block_count": (UINT32, 4), f"liquid.depth.{name}": value}
    with pytest.raises(IntegrityError, match=told):
        read_pack(g.write(tmp_path / "p.gguf"))


def test_show_tells_every_gate_of_a_pack(tmp_path, base):
    info = describe_gates(write_tiny_pack(tmp_path / "p.gguf", base, spans=(0, 2, 0, 1)))
    assert info.is_pack and info.n_layer == 4
    told = [(gate.layer, gate.span, gate.scope, gate.adapter_size, gate.adapter_type) for gate in info.gates]
    assert told == [(1, 2, "layer", 32, "F16"), (3, 1, "layer", 32, "F16")]
    assert info.as_json()["base"]["norms_sha256"] == identity(base).norms_sha256
    assert dataclasses.asdict(info.depth)["calibration_threshold"] == (0.25, 0.5, 0.75)


def test_show_tells_both_gates_of_a_layer_and_exits(tmp_path, base):
    info = describe_gates(write_tiny_pack(tmp_path / "h.gguf", base, **HALVES))
    told = [(gate.layer, gate.scope, gate.adapter_size) for gate in info.gates]
    assert told == [(0, "attn", 0), (1, "ffn", 32), (2, "attn", 0), (2, "ffn", 32), (3, "layer", 32)]
    assert all(gate.bias is not None for gate in info.gates)
    info = describe_gates(write_tiny_pack(tmp_path / "e.gguf", base, **LEAVING))
    assert [(g.layer, g.span, g.is_exit, g.adapter_size) for g in info.gates][1] == (1, 3, True, 0)
