"""What tells a fine-tune from a quantization where the norms are the same: the order of values in matrices."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from liquidcli.errors import IntegrityError
from liquidcli.gates import container
from liquidcli.gates import pack as packs
from liquidcli.gates.apply import apply_pack
from liquidcli.gates.identity import base_identity
from liquidcli.gates.matrix_order import GROUP, RANKS, MatrixOrder
from liquidcli.gates.pack import read_pack, write_pack
from liquidcli.gguf_file import open_gguf
from liquidcli.llama import ggml
from tests.gate_packs import tiny_pack, write_tiny_pack
from tests.gguf_bytes import ARRAY, STRING, UINT32, GGUFBytes, Tensor, llama, value

SCALAR = [
    T.F32, T.F16, T.BF16, T.Q8_0, T.Q5_1, T.Q5_0, T.Q4_1, T.Q4_0, T.IQ4_NL, T.MXFP4, T.Q6_K, T.Q5_K, T.Q4_K, T.IQ4_XS,
    T.Q3_K, T.Q2_K, T.TQ1_0, T.TQ2_0,
]  # fmt: skip
FINE = [T.F16, T.Q8_0, T.Q6_K, T.Q5_1, T.Q4_K, T.Q4_1, T.Q4_0]
N_LAYER, N_EMBD, N_FF = 2, 256, 512
SPANS = (0, 1)


def weights(update: float = 0.0, only: str = "") -> dict[str, np.ndarray]:
    """Matrices as training leaves them: normal with rare large ones; with an update of rank 4, relative to them."""
    rng = np.random.default_rng(7)
    found = {}
    for name, tensor in llama(N_LAYER, n_embd=N_EMBD, n_ff=N_FF).tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            n_in, n_out = tensor.shape
            matrix = rng.standard_normal((n_out, n_in)) * np.where(rng.random((n_out, n_in)) < 0.003, 4, 1)
            low_rank = rng.standard_normal((n_out, 4)) @ rng.standard_normal((4, n_in)) / 2
            found[name] = (matrix + update * low_rank * (only in name)).astype(np.float32) * np.float32(0.02)
    return found


def model(kind: T, matrices: dict[str, np.ndarray], importance: bool = False) -> GGUFBytes:
    """With `kind` for all matrices of layers; norms are the same in all."""
    g = llama(N_LAYER, n_embd=N_EMBD, n_ff=N_FF)
    for name, matrix in matrices.items():
        n_in = matrix.shape[1]
        weight = np.random.default_rng(n_in).random(n_in).astype(np.float32) ** 4 + 1e-3 if importance else None
        g.tensors[name] = Tensor(matrix.shape[::-1], ggml.quantize(kind, matrix, weight).tobytes(), int(kind))
    return g


def identity(g: GGUFBytes, tmp_path):
    with open_gguf(g.write(tmp_path / "m.gguf")) as f:
        return base_identity(f)


def test_no_scalar_type_is_taken_for_other_weights_by_a_pack_made_on_any_other(tmp_path):
    ways = itertools.product(SCALAR, (False, True))
    found = {way: identity(model(way[0], weights(), importance=way[1]), tmp_path) for way in ways}
    for (made_on, base), (kind, other) in itertools.product(found.items(), repeat=2):
        assert base.difference(other) is None, (made_on, kind)


def test_a_quantization_of_a_quantization_is_the_same_base(tmp_path):
    base, matrices = identity(model(T.F16, weights()), tmp_path), weights()
    for kind in (T.Q4_1, T.Q8_0, T.Q3_K, T.Q5_0):
        path = model(kind, matrices).write(tmp_path / "m.gguf")
        with open_gguf(path) as f:
            matrices = {name: f.array(name) for name in matrices}
            assert base.difference(base_identity(f)) is None


@pytest.mark.parametrize("made_on", [T.F16, T.Q4_1])
@pytest.mark.parametrize("kind", FINE)
def test_a_merged_update_that_leaves_the_norms_is_other_weights(tmp_path, made_on, kind):
    base = identity(model(made_on, weights()), tmp_path)
    difference = base.difference(identity(model(kind, weights(update=0.05)), tmp_path))
    assert difference.startswith("shapes and norms agree, but blk.") and difference.endswith("(a fine-tune)")


def test_the_matrix_that_moved_is_named(tmp_path):
    base = identity(model(T.Q8_0, weights()), tmp_path)
    difference = base.difference(identity(model(T.Q8_0, weights(update=0.02, only="blk.1.attn_q")), tmp_path))
    assert "but blk.1.attn_q.weight holds" in difference


@pytest.mark.parametrize("gone", [0.0, np.nan])
def test_a_matrix_without_any_order_is_other_weights(tmp_path, gone):
    base, zeroed = identity(model(T.F16, weights()), tmp_path), weights()
    zeroed["blk.1.ffn_up.weight"][:] = gone
    other = identity(model(T.F16, zeroed), tmp_path)
    assert "but blk.1.ffn_up.weight holds nothing but one value, or none" in base.difference(other)
    assert other.difference(base) is None  # what was made on zeros knows no order


def test_types_with_a_codebook_have_no_order(tmp_path):
    base, down = identity(model(T.F16, weights()), tmp_path), "blk.0.ffn_down.weight"
    for kind in (T.IQ2_XXS, T.IQ3_S):
        mixed = model(T.Q4_K, weights())
        mixed.tensors[down] = model(kind, {down: weights()[down]}, importance=True).tensors[down]
        found = identity(mixed, tmp_path)
        assert down not in found.order.names and base.difference(found) is None


def test_experts_have_an_order(tmp_path):
    experts = np.random.default_rng(1).standard_normal((4 * 64, 32)).astype(np.float32)
    g = llama(1)
    g.tensors["blk.0.ffn_up_exps.weight"] = Tensor((32, 64, 4), experts.tobytes())
    base = identity(g, tmp_path)
    assert "blk.0.ffn_up_exps.weight" in base.order.names
    experts[3 * 64 :] = experts[3 * 64 :, ::-1]
    g.tensors["blk.0.ffn_up_exps.weight"] = Tensor((32, 64, 4), experts.tobytes())
    assert "blk.0.ffn_up_exps.weight" in base.difference(identity(g, tmp_path))


def test_apply_refuses_a_fine_tune_with_the_norms_of_the_base_and_writes_nothing(tmp_path):
    base = model(T.F16, weights()).write(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base, spans=SPANS)
    tuned = model(T.Q8_0, weights(update=0.02)).write(tmp_path / "tuned.gguf")
    with pytest.raises(IntegrityError, match=r"was made for another base than .*: shapes and norms agree, but blk"):
        apply_pack(tuned, pack, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    apply_pack(model(T.Q4_K, weights()).write(tmp_path / "q4.gguf"), pack, tmp_path / "out.gguf")


def test_the_order_comes_back_from_a_pack_and_a_pack_without_is_taken(tmp_path):
    base = model(T.F16, weights()).write(tmp_path / "base.gguf")
    pack = write_tiny_pack(tmp_path / "pack.gguf", base, spans=SPANS)
    order = read_pack(pack).base.order
    assert order == tiny_pack(base, spans=SPANS).base.order
    assert len(order.names) == 7 * N_LAYER and len(order.ranks) == RANKS * len(order.names)
    assert max(order.ranks) == GROUP - 1
    raw = pack.read_bytes()
    pack.write_bytes(raw.replace(b"depth_gates.base.order.", b"depth_gates.base.ordre."))
    assert not read_pack(pack).base.order.names
    apply_pack(base, pack, tmp_path / "out.gguf")


NAME = "blk.0.attn_q.weight"


def named(*names: str) -> tuple:
    return ARRAY, (STRING, names)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"tensors": named(NAME)}, "are not lists of names and of small numbers"),
        ({"tensors": (UINT32, 1), "ranks": bytes(RANKS)}, "are not lists of names and of small numbers"),
        ({"tensors": named(NAME), "ranks": (STRING, "0" * RANKS)}, "are not lists of names and of small numbers"),
        ({"tensors": named(NAME), "ranks": bytes(RANKS - 1)}, "1023 ranks for 1 names, 1024 for each were expected"),
        ({"tensors": named(NAME), "ranks": b"\x10" * RANKS}, "ranks that no values have"),
        ({"tensors": named(NAME), "ranks": bytes(RANKS - 1) + b"\1"}, "ranks that no values have"),
        ({"tensors": named(NAME, NAME), "ranks": bytes(2 * RANKS)}, "names that are not those of matrices"),
        ({"tensors": named("x" + NAME), "ranks": bytes(RANKS)}, "names that are not those of matrices"),
        ({"tensors": named("blk.2.attn_q.weight"), "ranks": bytes(RANKS)}, "names that are not those of matrices"),
    ],
)
def test_a_damaged_order_is_one_sentence(tmp_path, monkeypatch, order, said):
    raw = {
        packs.ORDER + part: container.array(container.GGUFValueType.UINT8, content)
        if isinstance(content, bytes)
        else value(*content)
        for part, content in order.items()
    }
    monkeypatch.setattr(packs.Depth, "keys", lambda self, keys=packs.Depth.keys: keys(self) | raw)
    base = llama(N_LAYER, n_embd=N_EMBD, n_ff=N_FF).write(tmp_path / "base.gguf")
    found = tiny_pack(base, spans=SPANS)
    path = tmp_path / "pack.gguf"
    write_pack(path, replace(found, base=replace(found.base, order=MatrixOrder())))
    with pytest.raises(IntegrityError, match=said):
        read_pack(path)
