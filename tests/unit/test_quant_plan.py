"""Types, sizes and the rules for depth tensors, from headers alone."""

from __future__ import annotations

import pytest
from gguf import GGMLQuantizationType as T

from liquidcli import quant
from liquidcli.cli.quantize import Request, _beside, sort_words
from liquidcli.errors import IntegrityError, MemoryFitError, NotFoundError, UsageError
from liquidcli.quant import recipes
from liquidcli.quant.types import FILE_TYPES, TENSOR_TYPES, TRAINED_FOR, bits_per_weight, is_quantized
from tests.gguf_bytes import ARRAY, STRING, UINT32, llama
from tests.quant_models import SHAPES, Shape, blank, make


@pytest.mark.parametrize(
    ("text", "name"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("15", "Q4_K_M"), (" 7 ", "Q8_0"), ("bf16", "BF16")]
)
def test_type_by_name_alias_and_number(text, name):
    assert quant.file_type(text).name == name


@pytest.mark.parametrize("text", ["", "Q4", "4.5", "-1", "33", "Q2_K_M"])
def test_no_type(text):
    with pytest.raises(UsageError, match="is no quantization type") as failure:
        quant.file_type(text)
    assert "Q4_K_M" in failure.value.hint


def test_bits_per_weight_follow_from_blocks():
    expected = {"Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
    assert {name: bits_per_weight(TENSOR_TYPES[name]) for name in expected} == expected


def test_every_quantized_file_type_has_rules_and_every_rule_a_known_condition():
    quantized = {name for name, row in FILE_TYPES.items() if is_quantized(row.default)}
    assert quantized <= set(recipes.RULES) <= quantized | {"Q2_0"}  # which the gguf package may not know yet
    used = {c for rules in recipes.RULES.values() for rows in rules.values() for row in rows for c in row.conditions}
    assert used == set(recipes.CONDITIONS)


def test_more_bits_over_32_layers():
    chosen = [i for i in range(32) if recipes.more_bits(i, 32)]
    assert chosen == [*range(4), *range(6, 28, 3), *range(28, 32)]


def gated(tmp_path, shape: Shape, skip_width: int):
    """A `liquid` model with a bottleneck gate of each kind and an adapter at every layer but the first."""
    g = make(shape, "liquid", seed=None)
    d = shape.n_embd
    gate = {"": (8,), "_enc": (d, 8), "_dec": (8, d), "_norm": (8,)}
    dims = {
        **{f"depth_gate{half}{part}": shape for half in ("", "_attn", "_ffn") for part, shape in gate.items()},
        "depth_skip_gate": (d, skip_width), "depth_skip_up": (d, skip_width), "depth_skip_down": (skip_width, d),
    }  # fmt: skip
    for i in range(1, shape.n_layer):
        g.tensors |= {f"blk.{i}.{name}.weight": blank(T.F16, *shape) for name, shape in dims.items()}
    return g.write(tmp_path / "liquid.gguf")


def types(plan) -> dict[str, str]:
    return {t.name.removesuffix(".weight"): t.type.name for t in plan.tensors}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "Q8_0", "F16"])
@pytest.mark.parametrize("options", [{}, {"pure": True}, {"tensor_type": ["depth=q4_0"]}])
def test_gates_are_never_quantized(tmp_path, kind, options):
    plan = quant.plan(gated(tmp_path, Shape(), 32), kind, **options)
    gates = [t for t in plan.tensors if ".depth_gate" in t.name]
    assert len(gates) == 3 * 4 * 7 and all(t.type is t.source_type for t in gates)


def test_adapters_follow_the_feed_forward_of_their_layer(tmp_path):
    found = types(quant.plan(gated(tmp_path, Shape(), 256), "Q4_K_M"))
    for i in range(1, 8):
        for name in ("gate", "up", "down"):
            assert found[f"blk.{i}.depth_skip_{name}"] == found[f"blk.{i}.ffn_{name}"]
    assert {found[f"blk.{i}.depth_skip_down"] for i in range(1, 8)} == {"Q4_K", "Q6_K"}


def test_narrow_adapters_fall_back_on_their_own(tmp_path):
    found = types(quant.plan(gated(tmp_path, Shape(), 32), "Q4_K_M"))
    fallback = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
    assert all(found[f"blk.{i}.depth_skip_down"] == fallback[found[f"blk.{i}.ffn_down"]] for i in range(1, 8))
    assert all(found[f"blk.{i}.depth_skip_up"] == "Q4_K" for i in range(1, 8))


def test_adapters_of_expert_layers_follow_the_experts(tmp_path):
    found = types(quant.plan(gated(tmp_path, Shape(n_layer=6, n_head_kv=1, n_expert=8), 256), "Q4_K_M"))
    assert found["blk.5.depth_skip_down"] == found["blk.5.ffn_down_exps"] == "Q6_K"
    assert found["blk.4.depth_skip_gate"] == found["blk.4.ffn_gate_exps"] == "Q4_K"


def test_adapters_follow_an_override_of_the_feed_forward_and_obey_their_own(tmp_path):
    words = ["ffn_up=q8_0", "depth_skip_down=f16"]
    found = types(quant.plan(gated(tmp_path, Shape(), 256), "Q4_K_M", tensor_type=words))
    assert found["blk.3.depth_skip_up"] == "Q8_0" and found["blk.3.depth_skip_down"] == "F16"


def test_sources_that_are_quantized_need_leave(tmp_path):
    path = make(Shape(n_layer=1, source=T.Q8_0), seed=None).write(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="already quantized to Q8_0") as failure:
        quant.plan(path, "Q4_0")
    assert "--allow-requantize" in failure.value.hint
    assert types(quant.plan(path, "Q4_0", allow_requantize=True))["blk.0.attn_q"] == "Q4_0"
    quant.plan(path, "Q8_0")  # nothing to do to it


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"tensor_type": ["attn_q"]}, "not of the form RE=TYPE"),
        ({"tensor_type": ["(=q8_0"]}, "no regular expression"),
        ({"tensor_type": ["attn_q=q9"]}, "no tensor type"),
        ({"output_tensor_type": "Q4_K_M"}, "no tensor type"),
        ({"token_embedding_type": "q6_k"}, "rows of 320 .* do not divide into blocks of Q6_K"),
    ],
)
def test_wrong_words(tmp_path, words, match):
    path = make(SHAPES["tied-320"], seed=None).write(tmp_path / "m.gguf")
    with pytest.raises(UsageError, match=match):
        quant.plan(path, "Q4_K_M", **words)


def test_no_model(tmp_path):
    with pytest.raises(NotFoundError):
        quant.plan(tmp_path / "none.gguf", "Q4_0")
    g = llama()
    del g.keys["llama.block_count"]
    with pytest.raises(IntegrityError, match=r"no llama\.block_count"):
        quant.plan(g.write(tmp_path / "m.gguf"), "Q4_0")


def test_keys_are_copied_and_two_are_set(tmp_path):
    g = llama()
    g.keys["general.file_type"] = (UINT32, 1)
    g.keys["tokenizer.ggml.tokens"] = (ARRAY, (STRING, [b"\xff\xfe", *[f"t{i}".encode() for i in range(15)]]))
    plan = quant.plan(g.write(tmp_path / "m.gguf"), "Q8_0")
    assert list(plan.keys)[-2:] == ["general.quantization_version", "general.file_type"]
    assert plan.keys["general.file_type"] == (4).to_bytes(4, "little") + (7).to_bytes(4, "little")
    assert b"\xff\xfe" in plan.keys["tokenizer.ggml.tokens"]


def test_sizes_of_every_type_and_the_largest_that_fits(tmp_path):
    plans = quant.plan_every_type(make(Shape(n_layer=1), seed=None).write(tmp_path / "m.gguf"))
    sizes = [plan.size_bytes for plan in plans]
    assert sizes == sorted(sizes) and {plan.type.name for plan in plans} == set(quant.OFFERED)
    least = min(plan.size_bytes for plan in plans if plan.type.name not in TRAINED_FOR and not plan.needs_imatrix)
    for plan in plans:
        best = quant.largest_that_fits(plans, max(plan.size_bytes, least)).plan
        assert best.size_bytes <= max(plan.size_bytes, least)
        assert best.type.name not in TRAINED_FOR and not best.needs_imatrix
        assert best.size_bytes == plan.size_bytes or plan.needs_imatrix or plan.type.name in TRAINED_FOR
    assert quant.largest_that_fits(plans, 1 << 40).plan.type.name == "F16"
    with pytest.raises(MemoryFitError, match="the smallest type"):
        quant.largest_that_fits(plans, sizes[0] - 1)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("8G", 8 << 30), ("8gib", 8 << 30), ("8GB", 8 * 10**9), ("1.5M", 3 << 19), ("900", 900)]
)
def test_budgets(text, n_bytes):
    assert quant.budget_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "0", "8 apples", "-8G", "8GG"])
def test_no_budget(text):
    with pytest.raises(UsageError, match="is no size"):
        quant.budget_bytes(text)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("in q4_0", ("in", None, "Q4_0", None)),
        ("in 15", ("in", None, "Q4_K_M", None)),
        ("in q4_0 3", ("in", None, "Q4_0", 3)),
        ("in out q4_0", ("in", "out", "Q4_0", None)),
        ("in out 7 2", ("in", "out", "Q8_0", 2)),
    ],
)
def test_positional_words(words, expected):
    request = sort_words(words.split(), needs_type=True)
    assert request == Request(expected[0], expected[1] and type(request.output)(expected[1]), *expected[2:])


@pytest.mark.parametrize("words", ["in", "in out", "in q4_0 x", "in q4_0 0", "in out q4_0 2 3", "in out q99"])
def test_wrong_positional_words(words):
    with pytest.raises(UsageError):
        sort_words(words.split(), needs_type=True)


def test_positional_words_when_an_option_chooses_the_type():
    assert sort_words(["in", "out", "2"], needs_type=False).n_threads == 2
    assert sort_words(["in", "4"], needs_type=False) == Request("in", None, None, 4)
    with pytest.raises(UsageError, match="is a type"):
        sort_words(["in", "Q4_0"], needs_type=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a-f16.gguf", "a-Q8_0.gguf"), ("a.Q4_K_M.gguf", "a-Q8_0.gguf"), ("a-BF16-00001-of-00003.gguf", "a-Q8_0.gguf"),
        ("a-7b-instruct.gguf", "a-7b-instruct-Q8_0.gguf"), ("f16.gguf", "f16-Q8_0.gguf"), ("blob", "blob-Q8_0.gguf"),
    ],
)  # fmt: skip
def test_default_output(tmp_path, name, expected):
    assert _beside(tmp_path / name, is_file=True, name="Q8_0") == tmp_path / expected
    assert not _beside(tmp_path / name, is_file=False, name="Q8_0").is_absolute()
