"""Broken, lying and half-written GGUF files: each ends in one sentence and exit code 6 (3 where nothing is there)."""

from __future__ import annotations

import random
import struct
import time

import pytest

from liquidcli.errors import IntegrityError, LiquidError, NotFoundError, UsageError
from liquidcli.gguf_file import check_loadable, open_gguf
from tests.gguf_bytes import (
    ARRAY,
    BOOL,
    F16,
    FLOAT32,
    INT32,
    Q4_K,
    Q8_0,
    STRING,
    UINT32,
    GGUFBytes,
    Tensor,
    describe,
    f32,
    liquid,
    llama,
    string,
    strings,
    value,
)

T = "tokenizer.ggml."
ARCH = {"general.architecture": (STRING, "llama")}
FUZZ_SECONDS = 1.5


def one_sentence(error: LiquidError) -> bool:
    return "\n" not in error.message and error.message.strip() != "" and len(error.message) < 400


def refused(path, error, match):
    with pytest.raises(error, match=match) as failure, open_gguf(path) as f:
        check_loadable(f)
    assert one_sentence(failure.value)


def test_nothing_there(tmp_path):
    refused(tmp_path / "none.gguf", NotFoundError, "there is no file")


def test_folder(tmp_path):
    refused(tmp_path, UsageError, "is a folder")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "0 bytes, too short"),
        (b"GGUF\x03", "5 bytes, too short"),
        (b"<!doctype html><html><body>404</body></html>", "no GGUF file: it begins with b'<!do'"),
        (b"ggjt" + bytes(40), "begins with b'ggjt'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), "GGUF version 0"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "more than its 24 bytes can hold"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63), "more than its 24 bytes can hold"),
    ],
)
def test_header(tmp_path, content, match):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    refused(path, IntegrityError, match)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (string("a" * 10)[:12], "ends inside the name of key 1"),
        (struct.pack("<Q", 1 << 62) + b"abcdef", "ends inside the name of key 1"),
        (string("") + value(UINT32, 1), "key 1 is without a name"),
        (string("k" * 70000) + value(UINT32, 1), "the name of key 1 has 70000 bytes"),
        (string("general.architecture") + value(STRING, "x"), "a second 'general.architecture'"),
        (string("k") + struct.pack("<I", 13) + bytes(8), "value type 13"),
        (string("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(8), "array of arrays"),
        (string("k") + struct.pack("<IIQ", 9, 4, 1 << 40), "claims 1099511627776 elements"),
        (string("k") + struct.pack("<IIQ", 9, 8, 1 << 20), "ends inside the value of 'k'"),
        (string("k") + struct.pack("<IQ", 8, 1 << 63), "ends inside the value of 'k'"),
        (string("general.alignment") + value(UINT32, 48), "a power of two"),
        (string("general.alignment") + value(UINT32, 0), "a power of two"),
        (string("general.alignment") + value(STRING, "32"), "a power of two"),
    ],
)
def test_keys(tmp_path, keys, match):
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUFBytes(ARCH, n_keys=2, extra_keys=keys, alignment=1).build())
    refused(path, IntegrityError, match)


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (describe("a", (8,), 0, 0), "tensor 'a' is there twice"),
        (describe("", (8,), 0, 32), "0 bytes, 1 to 63"),
        (describe("b" * 64, (8,), 0, 32), "64 bytes, 1 to 63"),
        (describe("b", (2, 2, 2, 2, 2), 0, 32), "5 dimensions"),
        (describe("b", (), 0, 32), "0 dimensions"),
        (describe("b", (0, 4), 0, 32), "impossible shape"),
        (describe("b", (1 << 40, 1 << 40), 0, 32), "impossible shape"),
        (describe("b", (1 << 63, 1), 0, 32), "impossible shape"),
        (describe("b", (8,), 4, 32), "type 4, which is not known"),
        (describe("b", (8,), 0xFFFFFFFF, 32), "type 4294967295, which is not known"),
        (describe("b", (48,), Q8_0, 32), "rows of 48, no multiple of its block 32"),
        (describe("b", (128,), Q4_K, 32), "rows of 128, no multiple of its block 256"),
        (describe("b", (8,), 0, 33), "not aligned"),
        (describe("b", (8,), 0, 0), "'a' and 'b' overlap"),
        (describe("b", (8,), 0, 1 << 63), "truncated"),
        (describe("b", (1 << 20,), 0, 32), "truncated: tensor 'b' ends at byte"),
    ],
)
def test_tensors(tmp_path, tensor, match):
    g = GGUFBytes(ARCH, {"a": f32(8)}, n_tensors=2, extra_tensors=tensor)
    refused(g.write(tmp_path / "m.gguf"), IntegrityError, match)


def test_every_truncation_of_a_model(tmp_path):
    whole = llama().build()
    path = tmp_path / "m.gguf"
    for n_bytes in [*range(0, 2000, 7), *range(2000, len(whole), 4001), len(whole) - 1]:
        path.write_bytes(whole[:n_bytes])
        refused(path, IntegrityError, "too short|more than|ends inside|truncated")


def test_data_in_another_order_than_described(tmp_path):
    g = llama()
    first, second = list(g.tensors)[:2]
    g.tensors[first].offset, g.tensors[second].offset = 2048, 0
    g.tensors[second].shape = g.tensors[first].shape
    refused(g.write(tmp_path / "m.gguf"), IntegrityError, "does not follow the one before it|overlap")


def changed(g: GGUFBytes, keys=None, tensors=None) -> GGUFBytes:
    g.keys |= keys or {}
    g.tensors |= tensors or {}
    g.keys = {key: pair for key, pair in g.keys.items() if pair is not None}
    g.tensors = {name: tensor for name, tensor in g.tensors.items() if tensor is not None}
    return g


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"general.architecture": (STRING, "frog")}, "'frog' is not known"),
        ({"general.architecture": (UINT32, 3)}, "no general.architecture"),
        ({"general.type": (STRING, "adapter")}, "not a model"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": (UINT32, 0)}, "block_count is 0"),
        ({"llama.block_count": (UINT32, 1 << 31)}, "block_count is 2147483648"),
        ({"llama.block_count": (UINT32, 1)}, "there is a tensor 'blk.1"),
        ({"llama.block_count": (UINT32, 3)}, "'blk.2.attn_norm.weight' is missing"),
        ({"llama.block_count": (STRING, "2")}, "a u32 was expected"),
        ({"llama.context_length": (UINT32, 0)}, "context_length is 0"),
        ({"llama.embedding_length": (UINT32, 64)}, "token_embd.weight' has the shape"),
        ({"llama.attention.head_count": (UINT32, 5)}, "5 query heads and 2"),
        ({"llama.attention.head_count": (UINT32, 0)}, "head_count is 0"),
        ({"llama.attention.head_count_kv": (UINT32, 4)}, "attn_k.weight' has the shape"),
        ({"llama.attention.head_count_kv": (ARRAY, (UINT32, [2]))}, "1 entries for 2 layers"),
        ({"llama.attention.key_length": (UINT32, 7)}, "different lengths"),
        ({"llama.rope.dimension_count": (UINT32, 4)}, "rope.dimension_count is 4 for heads of 8"),
        ({"llama.rope.dimension_count": (UINT32, 0)}, "rope.dimension_count is 0"),
        ({"llama.rope.scaling.type": (STRING, "spiral")}, "'spiral'"),
        ({"llama.rope.freq_base": (FLOAT32, 0.0)}, "above zero"),
        ({"llama.attention.layer_norm_rms_epsilon": (FLOAT32, -1.0)}, "above zero"),
        ({"llama.attention.layer_norm_rms_epsilon": (FLOAT32, float("nan"))}, "above zero"),
        ({"llama.expert_count": (UINT32, 8)}, "expert_used_count is 0 of 8"),
        ({"llama.expert_used_count": (UINT32, 2)}, "expert_used_count is 2 of 0"),
        ({T + "model": None}, T + "model is missing"),
        ({T + "model": (STRING, "hieroglyphs")}, "'hieroglyphs'"),
        ({T + "tokens": None}, "tokens is missing"),
        ({T + "tokens": strings(*["same"] * 16)}, "tokens 0 and 1 are both 'same'"),
        ({T + "tokens": strings("a", "b")}, "token_type has 16 entries for 2 tokens"),
        ({T + "token_type": (ARRAY, (FLOAT32, [1.0] * 16))}, "no list of INT32"),
        ({T + "merges": None}, "merges is missing"),
        ({T + "merges": strings("ab")}, "merge 0 is 'ab'"),
        ({T + "model": (STRING, "gemma4"), T + "bos_token_id": (UINT32, 99)}, "bos_token_id is 99"),
        ({T + "model": (STRING, "t5"), T + "eos_token_id": (STRING, "</s>")}, "a value of type UINT32 was expected"),
        ({T + "model": (STRING, "bert"), T + "add_bos_token": (BOOL, False)}, "seperator_token_id is None"),
        ({T + "model": (STRING, "llama")}, "no token <0x00>"),
        ({T + "model": (ARRAY, (UINT32, []))}, "a string was expected"),
        ({"llama.feed_forward_length": (UINT32, 32)}, r"ffn_gate.weight' has the shape \[32, 64\], \[32, 32\]"),
        ({"llama.vocab_size": (UINT32, 1 << 31)}, "vocab_size is 2147483648"),
    ],
)
def test_model_keys(tmp_path, keys, match):
    refused(changed(llama(), keys).write(tmp_path / "m.gguf"), IntegrityError, match)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"token_embd.weight": None}, "'token_embd.weight' is missing"),
        ({"output_norm.weight": Tensor((32,), bytes(64), F16)}, "norms must be F32"),
        ({"blk.1.ffn_down.weight": f32(32, 64)}, r"has the shape \[32, 64\], \[64, 32\] was expected"),
        ({"blk.0.attn_q.weight": Tensor((32, 32), bytes(4096), 26)}, "type I32, which cannot be multiplied with"),
    ],
)
def test_model_tensors(tmp_path, tensors, match):
    refused(changed(llama(), tensors=tensors).write(tmp_path / "m.gguf"), IntegrityError, match)


L = "liquid."
D = "liquid.depth."


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({D + "version": (UINT32, 2)}, "version is 2, this version reads 1"),
        ({D + "gate_kind": (STRING, "oracle")}, "'oracle'"),
        ({D + "gate_span": (ARRAY, (UINT32, [0, 2, 2, 0]))}, "layer 2 lies inside the span"),
        ({D + "gate_span": (ARRAY, (UINT32, [0, 0, 0, 2]))}, "layer 3 spans 2 of 4"),
        ({D + "gate_span": (ARRAY, (INT32, [0, -1, 0, 0]))}, "layer 1 spans -1"),
        ({D + "gate_span": (ARRAY, (UINT32, [0, 1, 2]))}, "gate_span is 3 entries"),
        ({D + "gate_span": (ARRAY, (UINT32, [1, 1, 2, 0]))}, "'blk.0.depth_gate.weight' is missing"),
        ({D + "gate_span": (ARRAY, (UINT32, [0, 1, 0, 0]))}, "'blk.2.depth_gate.weight' but no gate begins"),
        ({D + "threshold": (FLOAT32, 1.5)}, "threshold is 1.5"),
        ({D + "threshold": (FLOAT32, float("nan"))}, "threshold is nan"),
        ({D + "kv_policy": (STRING, "keep")}, "kv_policy is 'keep', project or drop was expected"),
        ({D + "gate_exit": (ARRAY, (BOOL, [False, True, False, False]))}, "is an exit and spans 1 layers, all that"),
        ({D + "gate_exit": (ARRAY, (BOOL, [True, False, False, False]))}, "layer 0 has a scope or an exit but no gate"),
        ({D + "gate_exit": (ARRAY, (BOOL, [False]))}, "gate_exit must hold one bool for each of 4"),
        ({D + "gate_scope": (ARRAY, (STRING, ["", "", "", "ffn"]))}, "layer 3 has a scope or an exit but no gate"),
        ({D + "gate_scope": (ARRAY, (STRING, ["", "attn", "", ""]))}, "the gate at that layer is of another kind"),
        (
            {
                D + "gate_scope": (ARRAY, (STRING, ["", "ffn", "", ""])),
                D + "gate_span": (ARRAY, (UINT32, [0, 2, 0, 0])),
            },
            "scope 'ffn', so it must have span 1",
        ),
        (
            {
                D + "gate_exit": (ARRAY, (BOOL, [False, False, True, False])),
                D + "gate_span": (ARRAY, (UINT32, [0, 2, 2, 0])),
            },
            "layer 2 lies inside the span",
        ),
        ({D + "gate_scope": (ARRAY, (STRING, ["", "head", "", ""]))}, "scope 'head', layer, attn, ffn"),
        ({D + "min_layers": (FLOAT32, 2.0)}, "of type UINT32 was expected"),
        ({L + "rope.type": (STRING, "spiral")}, "'spiral', one of norm, neox, none"),
        ({L + "rope.layers": (ARRAY, (BOOL, [True]))}, "rope.layers is .*, true or false for each of 4 layers"),
        ({L + "attention.qk_norm": (STRING, "head")}, "'blk.0.attn_q_norm.weight' is missing"),
        ({L + "attention.window_type": (STRING, "sliding")}, "sliding_window is 0, a u32 number of at least 1"),
        ({L + "attention.clamp_kqv": (FLOAT32, float("inf"))}, "an f32 number"),
        ({L + "embedding_scale": (FLOAT32, 0.0)}, "an f32 number above zero"),
        ({L + "attention.scale": (UINT32, 1)}, "an f32 number above zero"),
        ({L + "final_logit_softcapping": (FLOAT32, float("nan"))}, "an f32 number above zero"),
        ({L + "feed_forward.activation": (STRING, "relu")}, "'relu', one of silu, gelu"),
        (
            {L + "rope.freq_base_swa": (FLOAT32, 1e4), L + "rope.scaling.type": (STRING, "yarn")},
            "'yarn', none or linear, beside rope.freq_base_swa",
        ),
        (
            {
                L + "feed_forward.activation": (STRING, "gelu"),
                L + "expert_count": (UINT32, 4),
                L + "expert_used_count": (UINT32, 2),
                L + "expert_gating_func": (UINT32, 1),
            },
            "'gelu', silu, as there are mixture layers",
        ),
        ({L + "moe_layers": (ARRAY, (BOOL, [True] * 4))}, "expert_count is 0, the number of experts"),
        ({L + "expert_count": (UINT32, 4), L + "expert_used_count": (UINT32, 2)}, "expert_gating_func is missing"),
        ({D + "ffn_scaled_by_gate": (UINT32, 1)}, "of type BOOL was expected"),
        ({D + "calibration.threshold": (ARRAY, (FLOAT32, [0.1]))}, "executed_fraction must be a list"),
        (
            {
                D + "calibration.threshold": (ARRAY, (FLOAT32, [0.5, 0.1])),
                D + "calibration.executed_fraction": (ARRAY, (FLOAT32, [0.9, 1.0])),
            },
            "must rise",
        ),
        (
            {
                D + "calibration.threshold": (ARRAY, (FLOAT32, [0.1, 0.5])),
                D + "calibration.executed_fraction": (ARRAY, (FLOAT32, [1.0])),
            },
            "2 thresholds and 1 executed",
        ),
    ],
)
def test_depth_keys(tmp_path, keys, match):
    refused(changed(liquid(), keys).write(tmp_path / "m.gguf"), IntegrityError, match)


@pytest.mark.parametrize(
    ("kind", "tensors", "match"),
    [
        ("linear", {"blk.1.depth_gate.weight": f32(16)}, r"\[16\], \[32\] was expected"),
        ("linear", {"blk.1.depth_gate.weight": Tensor((32,), bytes(34), Q8_0)}, "gates must not be quantized"),
        ("linear", {"blk.1.depth_gate.bias": f32(2)}, r"\[2\], \[1\] was expected"),
        ("linear", {"blk.1.depth_gate_enc.weight": f32(32, 4)}, "the gates are linear"),
        ("bottleneck", {"blk.1.depth_gate_enc.weight": None}, "'blk.1.depth_gate_enc.weight' is missing"),
        ("bottleneck", {"blk.1.depth_gate_norm.weight": f32(8)}, "depth_gate_enc.weight' has the shape"),
        ("bottleneck", {"blk.1.depth_gate_enc.weight": Tensor((32, 4), bytes(136), Q8_0)}, "must not be quantized"),
        ("bottleneck", {"blk.1.depth_gate_norm.weight": Tensor((4,), bytes(8), F16)}, "is not F32"),
        ("bottleneck", {"blk.1.depth_skip_down.weight": None}, "'blk.1.depth_skip_down.weight' is missing"),
        ("bottleneck", {"blk.2.depth_skip_up.weight": f32(32, 64)}, r"\[32, 64\], \[32, 32\] was expected"),
    ],
)
def test_depth_tensors(tmp_path, kind, tensors, match):
    refused(changed(liquid(kind=kind), tensors=tensors).write(tmp_path / "m.gguf"), IntegrityError, match)


def test_gate_tensors_without_depth_keys(tmp_path):
    g = liquid()
    g.keys = {key: pair for key, pair in g.keys.items() if not key.startswith(D)}
    refused(g.write(tmp_path / "m.gguf"), IntegrityError, "but no liquid.depth")


@pytest.mark.parametrize("alignment", [1, 8, 16])
def test_data_that_ggml_would_not_take_where_it_lies(tmp_path, alignment):
    """It wants a buffer's begin at a multiple of 32, and ends the process over others."""
    g, path, refusals = llama(), tmp_path / "m.gguf", 0
    g.keys["general.alignment"], g.alignment = (UINT32, alignment), alignment
    for n in range(32):
        g.keys["general.name"] = (STRING, "x" * n)
        with open_gguf(g.write(path)) as f:
            aligned = min(info.offset for info in f.tensors.values()) % 32 == 0
        if aligned:
            with open_gguf(path) as f:
                check_loadable(f, need_tokenizer=False)
        else:
            refused(path, IntegrityError, "no multiple of 32")
            refusals += 1
    assert 0 < refusals < 32


def test_a_rotation_wider_than_a_head_of_a_stock_architecture(tmp_path):
    g = llama(arch="qwen2")
    g.keys["qwen2.rope.dimension_count"] = (UINT32, 1000)
    refused(g.write(tmp_path / "m.gguf"), IntegrityError, "dimension_count is 1000 for heads of")


@pytest.mark.parametrize("seed", range(2))
def test_flipped_bytes_end_in_a_sentence(tmp_path, seed):
    """Whatever bytes are wrong, nothing but a LiquidError comes out."""
    rng = random.Random(seed)
    whole = liquid(kind="bottleneck").build()
    head_bytes = len(whole) - sum(-(-len(t.data) // 32) * 32 for t in liquid(kind="bottleneck").tensors.values())
    path = tmp_path / "m.gguf"
    end = time.monotonic() + FUZZ_SECONDS / 2
    n_files = n_refused = 0
    while time.monotonic() < end:
        data = bytearray(whole[: rng.randrange(24, len(whole))] if rng.random() < 0.1 else whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(head_bytes, len(data)))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(data)
        n_files += 1
        try:
            with open_gguf(path) as f:
                check_loadable(f)
                for name in list(f.tensors)[:3]:
                    f.array(name)
        except LiquidError as error:
            n_refused += 1
            assert one_sentence(error)
    assert n_refused > n_files // 10
