"""Carrying out a plan: bytes, threads, whole-or-absent output. Any ggml library will do, patched or not."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from liquidcli import quant
from liquidcli.errors import DiskSpaceError, IntegrityError, LiquidError, NotFoundError, UsageError
from liquidcli.gguf_file import check_loadable, open_gguf
from liquidcli.quant.types import FILE_TYPES, FROM_CODEBOOK
from tests.gguf_bytes import FLOAT32, INT32, STRING, UINT16, UINT32, GGUFBytes, Tensor, liquid
from tests.quant_models import Shape, make

SMALL = Shape(n_layer=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(SMALL).write(tmp_path_factory.mktemp("m") / "noise-f16.gguf")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"])
def test_blocks_are_those_of_the_gguf_package(model, kind, tmp_path):
    """A second opinion: the package's own encoders agree bit for bit."""
    quant.run(quant.plan(model, kind, pure=True), tmp_path / "q.gguf")
    with open_gguf(model) as source, open_gguf(tmp_path / "q.gguf") as made:
        for name in ("blk.1.ffn_down.weight", "token_embd.weight"):
            expected = gguf.quants.quantize(source.array(name), T[kind])
            assert made.raw(name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
def test_numbers_stay_near(model, kind, tmp_path):
    quant.run(quant.plan(model, kind), tmp_path / "q.gguf")
    with open_gguf(model) as source, open_gguf(tmp_path / "q.gguf") as made:
        a, b = source.array("blk.0.attn_q.weight"), made.array("blk.0.attn_q.weight")
    assert np.square(a - b).mean() < 0.02 * np.square(a).mean()


def test_threads_do_not_change_bytes_and_the_plan_knows_the_size(model, tmp_path):
    plan = quant.plan(model, "Q4_K_M")
    results = [quant.run(plan, tmp_path / f"{n}.gguf", n_threads=n) for n in (1, 3)]
    contents = [result.output.read_bytes() for result in results]
    assert contents[0] == contents[1] and len(contents[0]) == plan.size_bytes == results[0].size_bytes
    assert results[0].sha256 == results[1].sha256 == hashlib.sha256(contents[0]).hexdigest()


@pytest.fixture(scope="module")
def importances(model, tmp_path_factory):
    """Of every matrix in the layers, as another program might have measured it."""
    rng, entries = np.random.default_rng(1), {}
    with open_gguf(model) as f:
        for name, info in f.tensors.items():
            if name.startswith("blk.") and len(info.shape) > 1:
                entries[name] = (rng.random((1, info.shape[0]), np.float32), np.full(1, 64))
    path = tmp_path_factory.mktemp("i") / "i.gguf"
    quant.write_imatrix(path, entries, datasets=["text"], n_chunks=1, chunk_tokens=64)
    return path


@pytest.mark.parametrize("kind", list(FILE_TYPES))
def test_the_plan_knows_the_size_of_every_type(model, importances, kind, tmp_path):
    plan = quant.plan(model, kind, imatrix=importances)
    quant.run(plan, tmp_path / "q.gguf")
    assert (tmp_path / "q.gguf").stat().st_size == plan.size_bytes
    with open_gguf(tmp_path / "q.gguf") as f:
        n_bits = 8 * sum(info.size_bytes for info in f.tensors.values())
        assert plan.bits_per_weight == n_bits / sum(info.n_elements for info in f.tensors.values())
        assert f.metadata["general.file_type"] == plan.type.number


def test_progress_ends_at_the_total(model, tmp_path):
    seen = []
    plan = quant.plan(model, "Q8_0")
    quant.run(plan, tmp_path / "q.gguf", progress=lambda done, total, what: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (plan.source_bytes, plan.source_bytes)


def test_gated_models_keep_their_gates_and_stay_loadable(tmp_path):
    path = liquid(kind="bottleneck", n_embd=64, n_ff=64).write(tmp_path / "m.gguf")
    quant.run(quant.plan(path, "Q4_0"), tmp_path / "q.gguf")
    with open_gguf(path) as source, open_gguf(tmp_path / "q.gguf") as made:
        check_loadable(made)
        for name in (n for n in source.tensors if ".depth_gate" in n):
            assert made.raw(name).tobytes() == source.raw(name).tobytes()
        assert made.tensors["blk.1.depth_skip_up.weight"].type is T.Q4_0
        kept = {k: v for k, v in made.metadata.items() if k.startswith("liquid.")}
        assert kept == {k: v for k, v in source.metadata.items() if k.startswith("liquid.")}


def test_shards_become_one_file(tmp_path):
    whole = make(SMALL)
    names = list(whole.tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for no, half in enumerate(halves):
        keys = {"split.no": (UINT16, no), "split.count": (UINT16, 2), "split.tensors.count": (INT32, len(names))}
        part = GGUFBytes({**(whole.keys if no == 0 else {}), **keys}, {n: whole.tensors[n] for n in half})
        part.write(tmp_path / f"m-{no + 1:05d}-of-00002.gguf")
    split = quant.run(quant.plan(tmp_path / "m-00001-of-00002.gguf", "Q4_0"), tmp_path / "a.gguf")
    single = quant.run(quant.plan(whole.write(tmp_path / "m.gguf"), "Q4_0"), tmp_path / "b.gguf")
    assert split.sha256 == single.sha256


def leftovers(folder, *known):
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


def test_interrupt_leaves_nothing(model, tmp_path):
    def stop(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quant.run(quant.plan(model, "Q4_K_M"), tmp_path / "q.gguf", progress=stop)
    assert leftovers(tmp_path) == []


def test_failure_keeps_what_was_there_before(model, tmp_path):
    target = tmp_path / "q.gguf"
    target.write_text("precious")
    with pytest.raises(ZeroDivisionError):
        quant.run(quant.plan(model, "Q4_0"), target, progress=lambda *_: 1 // 0)
    assert target.read_text() == "precious" and leftovers(tmp_path) == ["q.gguf"]


def test_input_as_output(model, tmp_path):
    source = tmp_path / "m.gguf"
    shutil.copy(model, source)
    os.link(source, tmp_path / "link.gguf")
    (tmp_path / "soft.gguf").symlink_to(source)
    for name in ("m.gguf", "link.gguf", "soft.gguf"):
        with pytest.raises(UsageError, match="is also the input"):
            quant.run(quant.plan(source, "Q4_0"), tmp_path / name)
    assert source.read_bytes() == model.read_bytes()


def test_no_room(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="needs"):
        quant.run(quant.plan(model, "Q4_0"), tmp_path / "q.gguf")
    assert leftovers(tmp_path) == []


def test_places_one_cannot_write_to(model, tmp_path):
    plan = quant.plan(model, "Q4_0")
    with pytest.raises(NotFoundError, match="does not exist"):
        quant.run(plan, tmp_path / "no" / "q.gguf")
    with pytest.raises(UsageError, match="is a folder"):
        quant.run(plan, tmp_path)


@pytest.mark.parametrize(
    ("number", "kind", "match"),
    [
        (np.nan, "Q4_0", "not finite"),
        (np.inf, "F32", "not finite"),
        (1e6, "F16", "too large"),
        (1e9, "Q8_0", "too large"),
        (1e20, "IQ3_S", "too large"),
    ],
)
def test_numbers_that_cannot_be(tmp_path, number, kind, match):
    g = make(Shape(n_layer=1, source=T.F32))
    name = "blk.0.ffn_up.weight"
    numbers = np.frombuffer(g.tensors[name].data, "<f4").copy()
    numbers[7] = number
    g.tensors[name] = Tensor(g.tensors[name].shape, numbers.tobytes())
    with pytest.raises(IntegrityError, match=f"{name}.* {match}"):
        quant.run(quant.plan(g.write(tmp_path / "m.gguf"), kind), tmp_path / "q.gguf")
    assert leftovers(tmp_path, "m.gguf") == []


def test_input_that_changes_under_the_plan(model, tmp_path):
    source = tmp_path / "m.gguf"
    shutil.copy(model, source)
    plan = quant.plan(source, "Q4_0")
    make(Shape(n_layer=1)).write(source)
    with pytest.raises(IntegrityError, match="has changed"):
        quant.run(plan, tmp_path / "q.gguf")


def imatrix(path, entries, **keys):
    g = GGUFBytes({"general.type": (STRING, "imatrix"), "imatrix.datasets": (9, (STRING, ["text"]))})
    g.keys |= {"imatrix.chunk_count": (UINT32, 2), "imatrix.chunk_size": (UINT32, 512), **keys}
    for name, (sums, counts) in entries.items():
        for end, numbers in ((".in_sum2", sums), (".counts", counts)):
            array = np.asarray(numbers, "<f4")
            g.tensors[name + end] = Tensor(array.shape[::-1], array.tobytes())
    return g.write(path)


def test_importance_changes_the_bytes_and_is_recorded(model, tmp_path):
    sums = np.linspace(0.001, 9, 256)[None]
    weights = imatrix(tmp_path / "i.gguf", {"blk.0.attn_q.weight": (sums, [[4.0]])})
    plain = quant.run(quant.plan(model, "Q4_0"), tmp_path / "a.gguf")
    weighted = quant.run(quant.plan(model, "Q4_0", imatrix=weights), tmp_path / "b.gguf")
    with open_gguf(plain.output) as a, open_gguf(weighted.output) as b:
        changed = [n for n in a.tensors if a.raw(n).tobytes() != b.raw(n).tobytes()]
        assert "blk.0.attn_q.weight" in changed
        assert b.metadata["quantize.imatrix.entries_count"] == 1 and b.metadata["quantize.imatrix.dataset"] == "text"
    assert weighted.as_json()["imatrix"] == str(weights)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"blk.0.attn_q.weight": (np.ones((1, 128)), [[1.0]])}, "128 weights for 'blk.0.attn_q.weight', 256 were"),
        ({"blk.0.attn_q.weight": (np.full((1, 256), np.nan), [[1.0]])}, "not finite"),
        ({"blk.0.attn_q.weight": (np.full((1, 256), -1.0), [[1.0]])}, "below 0"),
        ({"blk.0.attn_q.weight": (np.ones((1, 256)), [[1.0], [2.0], [3.0]])}, "do not divide"),
        ({}, "without entries"),
    ],
)
def test_wrong_importance(model, tmp_path, entries, match):
    path = imatrix(tmp_path / "i.gguf", entries)
    with pytest.raises(LiquidError, match=match):
        quant.run(quant.plan(model, "Q4_0", imatrix=path), tmp_path / "q.gguf")
    assert leftovers(tmp_path, "i.gguf") == []


@pytest.mark.parametrize("kind", FROM_CODEBOOK)
def test_importance_beyond_what_ggml_can_multiply(model, tmp_path, kind):
    """It ends the process over some of these; at a hundred millionth of them it does what it always does."""
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for scale, whole in ((1e38, False), (1e10, True)):
        entries = {f"blk.{i}.{name}.weight": (np.full((1, 256), scale), [[1.0]]) for name in names for i in range(2)}
        path = imatrix(tmp_path / "i.gguf", entries)
        plan = quant.plan(model, kind.name if kind.name in FILE_TYPES else "IQ2_M", imatrix=path)
        if whole:
            assert quant.run(plan, tmp_path / "q.gguf").size_bytes
        else:
            with pytest.raises(IntegrityError, match="has importances, too large"):
                quant.run(plan, tmp_path / "q.gguf")
            assert leftovers(tmp_path, "i.gguf") == []


def test_importance_in_the_older_form(model, tmp_path):
    """Sums are kept as means times calls there; a name, the calls, the number of values, the values."""
    name, sums = b"blk.0.attn_q.weight", np.linspace(0.001, 9, 256, dtype="<f4")
    entry = struct.pack("<i", len(name)) + name + struct.pack("<ii", 4, 256) + (sums * 4).tobytes()
    text = struct.pack("<ii", 7, 4) + b"text"
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 1) + entry + text)
    matrix = quant.read_imatrix(tmp_path / "i.dat")
    assert matrix.n_chunks == 7 and matrix.datasets == ("text",)
    assert np.array_equal(matrix.entries[name.decode()], sums)
    (tmp_path / "bare.dat").write_bytes(struct.pack("<i", 1) + entry)
    assert quant.read_imatrix(tmp_path / "bare.dat").n_chunks == 0
    newer = imatrix(tmp_path / "i.gguf", {name.decode(): (sums[None] * 4, [[4.0]])})
    raw = []
    for path in (tmp_path / "i.dat", newer):
        result = quant.run(quant.plan(model, "Q4_0", imatrix=path), tmp_path / "q.gguf")
        with open_gguf(result.output) as f:
            raw.append(f.raw(name.decode()).tobytes())
    assert raw[0] == raw[1]
    for cut in (3, 10, 40, len(entry) - 1):
        (tmp_path / "cut.dat").write_bytes((struct.pack("<i", 1) + entry)[:cut])
        with pytest.raises(IntegrityError, match="whole importance matrix"):
            quant.read_imatrix(tmp_path / "cut.dat")


def test_what_is_no_importance_matrix(model, tmp_path):
    with pytest.raises(NotFoundError):
        quant.plan(model, "Q4_0", imatrix=tmp_path / "none.gguf")
    with pytest.raises(IntegrityError, match="is no importance matrix"):
        quant.plan(model, "Q4_0", imatrix=model)
    g = GGUFBytes({"imatrix.datasets": (9, (STRING, ["t"])), "imatrix.chunk_count": (FLOAT32, 1.0)})
    g.keys["imatrix.chunk_size"] = (UINT32, 512)
    with pytest.raises(IntegrityError, match="of another type"):
        quant.plan(model, "Q4_0", imatrix=g.write(tmp_path / "j.gguf"))
    g.keys["imatrix.chunk_count"] = (UINT32, 1)
    g.tensors["a.in_sum2"] = Tensor((4,), bytes(16))
    with pytest.raises(IntegrityError, match="is incomplete"):
        quant.plan(model, "Q4_0", imatrix=g.write(tmp_path / "i.gguf"))


def test_source_types_of_every_kind(tmp_path):
    """F32, F16, BF16 and blocks are read alike: the same numbers give the same bytes."""
    source = make(Shape(n_layer=1, source=T.Q8_0)).write(tmp_path / "q8.gguf")
    wide = quant.run(quant.plan(source, "F32", allow_requantize=True), tmp_path / "f32.gguf")
    a = quant.run(quant.plan(source, "Q4_1", allow_requantize=True), tmp_path / "a.gguf")
    b = quant.run(quant.plan(wide.output, "Q4_1"), tmp_path / "b.gguf")
    assert a.sha256 == b.sha256
