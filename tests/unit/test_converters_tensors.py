"""The closed world of tensors, the registry, typed configuration and the transforms, each on its own."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from liquidcli.converters import fields, registry, transforms
from liquidcli.converters.checkpoint import SourceTensor
from liquidcli.converters.config import Config
from liquidcli.converters.encode import encode
from liquidcli.converters.tensors import Row, Target, bind, drop, match, row, stored_type
from liquidcli.errors import IntegrityError, LiquidError

DIMS = {"d": 4, "f": 6}
ROWS = (
    row("layers.{i}.up.weight", "blk.{i}.ffn_up.weight", "f d"),
    row("layers.{i}.up.bias", "blk.{i}.ffn_up.bias", "f", required=False),
    drop("layers.{i}.inv_freq", "computed"),
)


def sources(**shapes: tuple[int, ...]) -> dict[str, SourceTensor]:
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: SourceTensor(name, "F32", shape, Path("x"), 0, 0) for name, shape in names.items()}


def test_each_tensor_meets_its_row() -> None:
    found = sources(layers__3__up__weight=(6, 4), layers__3__inv_freq=(2,))
    outputs, dropped = match(found, bind(ROWS, 3), DIMS, "f16")
    assert [(one.name, one.shape, one.type.name) for one in outputs] == [("blk.3.ffn_up.weight", (6, 4), "F16")]
    assert [(one.source.name, one.reason) for one in dropped] == [("layers.3.inv_freq", "computed")]


def test_unknown_tensors_name_the_first_ten_and_the_nearest_row() -> None:
    extra = {f"layers__0__upp__w{i}": (1,) for i in range(12)}
    with pytest.raises(IntegrityError) as caught:
        match(sources(layers__0__up__weight=(6, 4), **extra), bind(ROWS, 0), DIMS, "f32")
    message = caught.value.message
    assert "12 of the checkpoint's 13 tensors are unknown" in message
    assert "layers.0.upp.w9, ..." in message and "w10" not in message
    assert "nearest known to the first: layers.0.up.weight" in message


def test_missing_tensors_are_named() -> None:
    with pytest.raises(IntegrityError, match=r"lacks 1 tensors: layers\.0\.up\.weight"):
        match(sources(layers__0__up__bias=(6,)), bind(ROWS, 0), DIMS, "f32")


def test_half_of_an_optional_group_is_missing() -> None:
    pair = (Row((("a", "d"), ("b", "d")), (Target("ab", "d"),), required=False),)
    assert match({}, pair, DIMS, "f32") == ([], [])
    with pytest.raises(IntegrityError, match="lacks 1 tensors: b"):
        match(sources(a=(4,)), pair, DIMS, "f32")


def test_a_wrong_shape_and_a_wrong_type_are_told() -> None:
    with pytest.raises(IntegrityError, match=r"shape \[4, 6\], config.json makes it \[6, 4\]"):
        match(sources(layers__0__up__weight=(4, 6)), bind(ROWS, 0), DIMS, "f32")
    found = {"layers.0.up.weight": SourceTensor("layers.0.up.weight", "F8_E4M3", (6, 4), Path("x"), 0, 0)}
    with pytest.raises(IntegrityError, match="stored as F8_E4M3"):
        match(found, bind(ROWS, 0), DIMS, "f32")


def test_two_rows_may_not_claim_one_tensor() -> None:
    with pytest.raises(ValueError, match="two rows claim"):
        match({}, [row("a", "x", "d"), row("a", "y", "d")], DIMS, "f32")


@pytest.mark.parametrize(
    ("name", "shape", "role", "outtype", "kind"),
    [
        ("blk.0.attn_q.weight", (8, 64), "", "q8_0", "Q8_0"),
        ("blk.0.attn_q.weight", (8, 48), "", "q8_0", "F16"),
        ("blk.0.attn_q.bias", (8,), "", "f16", "F32"),
        ("blk.0.ffn_gate_inp.weight", (8, 64), "", "bf16", "F32"),
        ("blk.0.ffn_gate_exps.weight", (2, 8, 64), "", "bf16", "BF16"),
        ("blk.0.attn_q_norm.weight", (8, 64), "", "f16", "F32"),
        ("token_embd.weight", (8, 64), "", "q8_0", "Q8_0"),
        ("blk.0.depth_gate_enc.weight", (8, 64), "depth_gate", "q8_0", "F32"),
        ("blk.0.depth_skip_up.weight", (8, 64), "depth_skip_up", "q8_0", "Q8_0"),
        ("blk.0.depth_skip_up.weight", (8, 64), "depth_skip_up", "f16", "F16"),
        ("rope_freqs.weight", (8,), "", "f16", "F32"),
    ],
)
def test_stored_types(name: str, shape: tuple[int, ...], role: str, outtype: str, kind: str) -> None:
    assert stored_type(name, shape, role, outtype).name == kind


def test_interleaving_is_undone_by_its_inverse() -> None:
    w = np.arange(48).reshape(16, 3)
    assert transforms.interleave(w, 2)[:4, 0].tolist() == [0, 12, 3, 15]
    np.testing.assert_array_equal(transforms.deinterleave(transforms.interleave(w, 2), 2), w)
    np.testing.assert_array_equal(transforms.interleave(np.arange(4), 1), [0, 2, 1, 3])


def test_interleaved_queries_rotate_alike() -> None:
    """Half-split rotation of the checkpoint's order = pairwise rotation of ours: what the permutation is for."""
    random = np.random.default_rng(0)
    q, angles = random.standard_normal(8), random.standard_normal(4)
    first, second = q[:4], q[4:]
    cos, sin = np.cos(angles), np.sin(angles)
    half = np.concatenate([first * cos - second * sin, second * cos + first * sin])
    even, odd = transforms.interleave(q, 1)[0::2], transforms.interleave(q, 1)[1::2]
    pairs = np.stack([even * cos - odd * sin, odd * cos + even * sin], 1)
    np.testing.assert_allclose(pairs.ravel(), transforms.interleave(half, 1))


def test_experts_are_split_and_turned() -> None:
    fused = np.arange(2 * 3 * 8).reshape(2, 3, 8)  # two experts, d = 3, f = 4: gate first
    gate, up = transforms.FIRST_HALF(fused), transforms.SECOND_HALF(fused)
    assert gate.shape == up.shape == (2, 4, 3)
    assert gate[1, 2, 0] == fused[1, 0, 2] and up[1, 2, 0] == fused[1, 0, 6]


@pytest.mark.parametrize("one", [transforms.SAME, transforms.SWAP, transforms.FIRST_HALF, transforms.SECOND_HALF])
def test_row_wise_transforms_keep_their_promise(one: transforms.Transform) -> None:
    w = np.arange(4 * 6 * 8).reshape(4, 6, 8)
    pieces = np.concatenate([one(w[:1]), one(w[1:3]), one(w[3:])])
    assert one.by_row
    np.testing.assert_array_equal(pieces, one(w))


def test_folding_is_the_same_function() -> None:
    random = np.random.default_rng(1)
    dec, head, x = random.standard_normal((5, 3)), random.standard_normal((1, 5)), random.standard_normal(3)
    folded = transforms.fold_head(dec.astype(np.float32), head.astype(np.float32))
    assert folded.dtype == np.float32 and folded.shape == (3,)
    assert folded @ x == pytest.approx(float((head @ (dec @ x))[0]), rel=1e-5)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_encoding_is_ggufs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liquidcli.converters.encode._PIECE_ITEMS", 96)
    values = np.random.default_rng(2).standard_normal((7, 64)).astype(np.float32)
    wanted = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    assert encode(values, "F32", gguf.GGMLQuantizationType[kind], "x").tobytes() == wanted.tobytes()


def awkward_blocks() -> np.ndarray:
    """Halves and their neighbours under a scale of one, numbers near zero, blocks of zeros, every exponent."""
    random = np.random.default_rng(3)
    halves = (random.integers(-254, 255, (256, 32)) / 2).astype(np.float32)
    below, above = (np.nextafter(halves, np.float32(end)) for end in (0, 999))
    for blocks in (halves, below, above):
        blocks[:, 0] = 127
    bits = random.integers(0, 1 << 32, (512, 32), dtype=np.uint64).astype(np.uint32).view(np.float32)
    every = np.where(np.isfinite(bits) & (np.abs(bits) < 8e6), bits, 0)
    return np.concatenate([halves, below, above, halves * np.float32(1e-40), every, np.zeros((4, 32))]).astype("f4")


def test_q8_0_rounds_as_gguf_does() -> None:
    values = awkward_blocks()
    with np.errstate(all="ignore"):
        wanted = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    assert encode(values, "F32", gguf.GGMLQuantizationType.Q8_0, "x").tobytes() == wanted.tobytes()


def test_every_bf16_becomes_its_f16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7FFF) <= 0x477F]  # 65280, the last that F16 can hold
    wanted = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float16)
    assert encode(bits, "BF16", gguf.GGMLQuantizationType.F16, "x").tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(dtype: str, bad: float) -> None:
    values = np.ones(64, {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "f4"}[dtype])
    values[7] = bad
    values = (values.view("u4") >> 16).astype("u2") if dtype == "BF16" else values
    for kind in ("F32", "F16", "BF16", "Q8_0"):
        with pytest.raises(IntegrityError, match=r"model\.x holds values that are not finite"):
            encode(values, dtype, gguf.GGMLQuantizationType[kind], "model.x")


@pytest.mark.parametrize(("dtype", "value"), [("F32", 1e5), ("BF16", 65536.0), ("F64", -7e4)])
def test_numbers_beyond_f16_are_refused(dtype: str, value: float) -> None:
    values = np.full(32, value, "f8" if dtype == "F64" else "f4")
    values = (values.view("u4") >> 16).astype("u2") if dtype == "BF16" else values
    with pytest.raises(IntegrityError, match="beyond the range of F16"):
        encode(values, dtype, gguf.GGMLQuantizationType.F16, "x")
    assert encode(values, dtype, gguf.GGMLQuantizationType.F32, "x").size == 32


# registry


def test_every_architecture_of_the_folder_is_known() -> None:
    names = {"LlamaForCausalLM", "MistralForCausalLM", "LiquidForCausalLM", "DDLlamaForCausalLM"}
    assert names <= set(registry.known())


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(LiquidError, match="'LLamaForCasualLM' is not known here; nearest: LlamaForCausalLM"):
        registry.find({"architectures": ["LLamaForCasualLM"]})


@pytest.mark.parametrize("names", [None, [], "LlamaForCausalLM", [3]])
def test_no_architecture(names: object) -> None:
    with pytest.raises(IntegrityError, match="names no architecture"):
        registry.find({"architectures": names, "model_type": "llama"})


def test_two_files_may_not_claim_one_architecture() -> None:
    registry.known()
    with pytest.raises(ValueError, match=r"LlamaForCausalLM is claimed by .*llama\.py and by .*test_converters"):
        registry.arch("LlamaForCausalLM")(type("Other", (), {"__module__": __name__}))


# configuration


@pytest.mark.parametrize("value", [0, -1, 1 << 60, "3", 2.5, True, [3], float("inf")])
def test_integers_are_bounded_and_typed(value: object) -> None:
    with pytest.raises(IntegrityError, match=r"n is .*expected a whole number between 1 and"):
        Config({"n": value}).integer("n")


def test_getters_take_what_is_meant() -> None:
    config = Config({"n": 3.0, "none": None, "x": 2, "list": [1, 2], "floats": [0, 0.5], "on": True, "kind": "a"})
    assert config.integer("n") == 3 and config.integer("none", None) is None and config.integer("gone", 7) == 7
    assert config.number("x") == 2.0 and config.flag("on") is True and config.choice("kind", "ab") == "a"
    assert config.items("list", int, 2) == (1, 2) and config.items("floats", float) == (0.0, 0.5)
    for bad in (lambda: config.integer("none"), lambda: config.items("list", int, 3), lambda: config.flag("n"),
                lambda: config.choice("kind", ("b",)), lambda: config.items("floats", int)):  # fmt: skip
        with pytest.raises(IntegrityError):
            bad()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, "1", None])
def test_numbers_are_finite(value: object) -> None:
    with pytest.raises(IntegrityError):
        Config({"x": value}).number("x")


def test_what_nobody_asked_for_is_reported_with_its_place() -> None:
    config = Config({"a": 1, "b": 2, "use_cache": True, "off": False, "inner": {"c": 1, "d": [2]}})
    config.integer("a")
    inner = config.section("inner")
    assert inner is not None
    inner.integer("c")
    assert [line.split(" is not known")[0] for line in config.unknown()] == [
        "config.json: b = 2", "config.json: inner: d = [2]",
    ]  # fmt: skip


def test_only_refuses_by_value_and_type() -> None:
    config = Config({"a": 1, "b": True, "c": "x" * 500})
    config.only("a", 1, why="")
    config.only("gone", 5, why="")
    for name in ("b", "c"):
        with pytest.raises(LiquidError, match="not supported: because") as caught:
            config.only(name, 1, why="because")
        assert len(caught.value.message) < 200


def test_values_that_do_not_fit_their_field() -> None:
    with pytest.raises(IntegrityError, match="n cannot hold"):
        fields.pack_field(fields.u32("n", -1))
    with pytest.raises(IntegrityError, match="x cannot hold"):
        fields.pack_field(fields.f32("x", 1e300))
