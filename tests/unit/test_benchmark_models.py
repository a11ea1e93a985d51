"""The random models of benchmarks/: what is written can be read back, is finite, and its bytes add up as published."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liquidcli.gguf_file import TensorInfo, open_gguf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from random_model import BODY_TYPES, random_data, set_biases, write_model  # noqa: E402
from savable import token_bytes  # noqa: E402
from shapes import SHAPES, Gates, Tensor, Type, tensors  # noqa: E402


def described(shape, body=Type.Q4_0, head=Type.Q6_K, gates=None, **metadata):
    """A file's table without the file."""
    infos = {t.name: TensorInfo(t.name, t.shape, t.type, 0, t.size_bytes) for t in tensors(shape, body, head, gates)}
    return SimpleNamespace(architecture="liquid", metadata=metadata, tensors=infos, block_count=shape.n_layer)


@pytest.mark.parametrize("kind", BODY_TYPES, ids=lambda kind: kind.name)
def test_random_values_are_finite_centred_and_of_the_wanted_spread(kind, tmp_path):
    write_model(tmp_path / "m.gguf", SHAPES["tiny"], body=kind)
    with open_gguf(tmp_path / "m.gguf") as f:
        values = f.array("blk.3.ffn_up.weight")  # std = 1 / sqrt(256)
    assert f.tensors["blk.3.ffn_up.weight"].type is kind
    assert np.isfinite(values).all()
    assert values.std() == pytest.approx(1 / 16, rel=0.2)
    assert abs(values.mean()) < 0.01 / 16 * 3


def test_a_twin_shares_every_weight_and_has_no_depth_part(tmp_path):
    shape = SHAPES["tiny"]
    write_model(tmp_path / "liquid.gguf", shape, gates=Gates((4, 5), adapter=32))
    write_model(tmp_path / "llama.gguf", shape)
    with open_gguf(tmp_path / "liquid.gguf") as liquid, open_gguf(tmp_path / "llama.gguf") as llama:
        assert (liquid.architecture, llama.architecture) == ("liquid", "llama")
        own = {name for name in liquid.tensors if "depth_" in name}
        assert set(liquid.tensors) - own == set(llama.tensors)
        assert all(np.array_equal(liquid.raw(name), llama.raw(name)) for name in llama.tensors)
        assert {name.split(".")[1] for name in own} == {"4", "5"}
        assert liquid.metadata["liquid.depth.gate_span"] == [0, 0, 0, 0, 1, 1, 0, 0]
        assert liquid.tensors["blk.4.depth_skip_down.weight"].type == liquid.tensors["blk.4.ffn_down.weight"].type


def test_another_seed_gives_other_weights():
    tensor = Tensor("a", (256, 4), Type.Q4_0, std=1.0)
    assert np.array_equal(random_data(tensor, 1), random_data(tensor, 1))
    assert not np.array_equal(random_data(tensor, 1), random_data(tensor, 2))


def test_biases_are_set_in_place_and_touch_nothing_else(tmp_path):
    path = write_model(tmp_path / "m.gguf", SHAPES["tiny"], gates=Gates((2, 6)))
    before = path.read_bytes()
    set_biases(path, {2: -50.0, 6: 50.0})
    with open_gguf(path) as f:
        assert f.array("blk.2.depth_gate.bias").tolist() == [-50.0]
        assert f.array("blk.6.depth_gate.bias").tolist() == [50.0]
    set_biases(path, {2: 0.0, 6: 0.0})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("head", "kind", "ratios"),
    [
        (Type.Q6_K, "linear", (1.114, 1.258, 1.345, 1.696)),
        (Type.Q6_K, "bottleneck", (1.096, 1.234, 1.318, 1.653)),
    ],
)
def test_savable_bytes_of_the_8b_shape_with_flexidepth_parts(head, kind, ratios):
    """Figures worked out by hand for the upper 16 layers gated and adapters of 896: run time full / skipping."""
    upper = range(16, 32)
    found = token_bytes(described(SHAPES["llama-3-8b"], head=head, gates=Gates(tuple(upper), kind, 256, 896)))
    for skipped, ratio in zip((4, 8, 10, 16), ratios, strict=True):
        savable = found.savable({layer: float(layer < 32 - skipped) for layer in upper})
        assert 1 / (1 - savable) == pytest.approx(ratio, abs=0.002)


def test_a_skipped_layer_still_reads_its_norm_keys_values_gate_and_adapter():
    shape = SHAPES["tiny"]
    f = described(shape, gates=Gates((7,), adapter=32))
    found = token_bytes(f)
    still_read = [
        f"blk.7.{part}.weight"
        for part in ("attn_norm", "attn_k", "attn_v", "depth_gate", "depth_skip_gate", "depth_skip_up",
                     "depth_skip_down", "ffn_norm")
    ] + ["blk.7.depth_gate.bias"]  # fmt: skip
    rest = sum(i.size_bytes for name, i in f.tensors.items() if not name.startswith("blk.7."))
    assert found.at({7: 0.0}) == rest + sum(f.tensors[name].size_bytes for name in still_read)
    no_depth = sum(i.size_bytes for name, i in f.tensors.items() if "depth_" not in name)
    assert found.full == no_depth
    assert found.at({7: 0.5}) == pytest.approx((found.at({7: 0.0}) + found.at({7: 1.0})) / 2)


def test_of_the_experts_only_the_used_ones_are_read():
    shape = SHAPES["tiny-moe"]
    f = described(shape, **{"liquid.expert_count": 8, "liquid.expert_used_count": 2})
    experts = sum(i.size_bytes for name, i in f.tensors.items() if "_exps" in name)
    others = sum(i.size_bytes for name, i in f.tensors.items() if "_exps" not in name)
    assert token_bytes(f).full == others + experts // 4


def test_an_untied_embedding_counts_as_one_row():
    f = described(SHAPES["llama-3-8b"])
    row = f.tensors["token_embd.weight"].size_bytes // 128256
    total = sum(i.size_bytes for name, i in f.tensors.items() if name != "token_embd.weight")
    assert token_bytes(f).full == total + row


def test_named_shapes_have_the_published_number_of_parameters():
    def parameters(name: str) -> int:
        return sum(i.n_elements for i in described(SHAPES[name]).tensors.values())

    assert parameters("smollm2-135m") == 134_515_008
    assert parameters("llama-3.2-1b") == 1_235_814_400
    assert parameters("llama-3-8b") == 8_030_261_248
    assert 0.9e9 < parameters("moe-1b") < 1.1e9
