"""Importance matrices: the file of llama-imatrix, and only tokens that used a matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from liquidcli import quant
from liquidcli.errors import UsageError
from liquidcli.llama.evaluation import Watcher
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.imatrix import measure_importance
from tests import random_models

TEXT = random_models.TEXT.read_text().removesuffix("\n")
AUTO, FULL = DepthPolicy.parse("auto"), DepthPolicy.parse("full")
ONE_BATCH = {"n_ctx": 64, "n_batch": 64, "n_chunks": 1, "n_threads": 1}
oracle = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no unpatched tools"),
]


def saved(path: Path, found) -> Path:
    entries = {name: (entry.sums, entry.counts) for name, entry in found.entries.items()}
    quant.write_imatrix(path, entries, datasets=["text"], n_chunks=found.n_chunks, chunk_tokens=found.n_ctx)
    return path


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return random_models.gated(tmp_path_factory.mktemp("gated"))


def seen(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows that went into one matrix over the first 64 tokens, and the decisions: [64, n], [64, n_gate]."""
    rows = []
    watcher = Watcher(lambda found: found == name, lambda product: rows.append(product.rows))
    with Engine.load(path, n_ctx=64, n_batch=64, n_threads=1, on_node=watcher.callback) as engine:
        engine.set_depth(AUTO)
        tokens = engine.tokenize(TEXT)[:64]
        if engine.model.add_bos:
            tokens[0] = engine.model.bos
        engine.context.set_dense()
        engine.set_trace(True)
        watcher.is_on = True
        engine.decode(tokens, logits="all")
        return np.concatenate([part[0, 0] for part in rows]), engine.trace().run


def test_tokens_count_where_they_ran(gated):
    found = measure_importance(gated, TEXT, AUTO, **ONE_BATCH)
    counts = {name: int(entry.counts[0]) for name, entry in found.entries.items()}
    rows, run = seen(gated, "blk.6.ffn_up.weight")
    ran = run.sum(axis=0)  # of the gates on layers 4 to 7
    assert 0 < ran[2] < 64
    for gate, layer in enumerate(random_models.GATED):
        for name in ("attn_q", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
            assert counts[f"blk.{layer}.{name}.weight"] == ran[gate]
        for name in ("attn_k", "attn_v"):
            assert counts[f"blk.{layer}.{name}.weight"] == 64  # keys and values are made of skipped tokens too
        assert counts[f"blk.{layer}.depth_skip_up.weight"] == 64 - ran[gate]
    assert counts["blk.3.ffn_up.weight"] == 64 and not any("depth_gate" in name for name in counts)
    expected = np.square(rows[run[:, 2]]).sum(axis=0)
    np.testing.assert_allclose(found.entries["blk.6.ffn_up.weight"].sums[0], expected, rtol=1e-5)


def test_at_full_depth_a_liquid_model_is_its_stock_twin(gated, tmp_path):
    ours = measure_importance(gated, TEXT, FULL, **ONE_BATCH).entries
    stock = measure_importance(random_models.stock(tmp_path), TEXT, FULL, **ONE_BATCH).entries
    assert all(entry.counts[0] == 0 for name, entry in ours.items() if "depth_skip" in name)
    for name, entry in stock.items():
        assert np.array_equal(entry.counts, ours[name].counts)
        np.testing.assert_allclose(ours[name].sums, entry.sums, rtol=1e-3)


def test_batches_and_their_parts_do_not_matter(gated):
    whole = measure_importance(gated, TEXT, AUTO, 64, 4, 256, n_threads=1).entries
    parts = measure_importance(gated, TEXT, AUTO, 64, 4, 64, n_ubatch=32, n_threads=1).entries
    for name, entry in whole.items():
        assert abs(int(entry.counts[0]) - int(parts[name].counts[0])) <= 13  # of 256; kernels differ by their rows
        if entry.counts[0] and name.endswith(("attn_k.weight", "attn_v.weight")):
            assert abs(np.log(entry.sums.sum() / parts[name].sums.sum())) < 0.02


def test_experts_of_skipped_tokens_are_not_counted(tmp_path):
    found = measure_importance(random_models.gated(tmp_path, "tiny-moe"), TEXT, AUTO, **ONE_BATCH).entries
    for layer in range(8):
        asked = found[f"blk.{layer}.ffn_up_exps.weight"].counts
        assert len(asked) == 8 and asked.sum() == 2 * found[f"blk.{layer}.attn_q.weight"].counts[0]
    assert found["blk.4.ffn_up_exps.weight"].counts.sum() == 128
    assert found["blk.5.ffn_up_exps.weight"].counts.sum() == 0
    assert 0 < found["blk.6.ffn_up_exps.weight"].counts.sum() < 128


def test_what_is_written_is_read_again(gated, tmp_path):
    found = measure_importance(gated, TEXT, AUTO, **ONE_BATCH)
    matrix = quant.read_imatrix(saved(tmp_path / "i.gguf", found))
    entry = found.entries["blk.6.ffn_up.weight"]
    np.testing.assert_allclose(matrix.entries["blk.6.ffn_up.weight"], entry.sums[0] / entry.counts[0], rtol=1e-6)
    assert (matrix.entries["blk.5.ffn_up.weight"] == 1).all()  # never run: nothing is known of it
    plan = quant.plan(gated, "Q4_K_M", imatrix=tmp_path / "i.gguf", allow_requantize=True)
    assert plan.n_unweighted == 0


def test_texts_that_are_too_short(gated):
    with pytest.raises(UsageError, match=r"the text has .* tokens, a context of 512 needs at least 1024"):
        measure_importance(gated, "short", AUTO)
    with pytest.raises(UsageError, match="at least 16 tokens, not 8"):
        measure_importance(gated, TEXT, AUTO, 8)


def tool(*words: object) -> str:
    folder = Path(os.environ["LIQUID_ORACLE_DIR"])
    command, environment = [folder / "llama-imatrix", *words], {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def liquid(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "liquidcli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def upstream(model: Path, out: Path, *words: object) -> bytes:
    tool("-m", model, "-f", random_models.TEXT, "-o", out, "--no-ppl", "-t", 1, *words)
    return out.read_bytes()


def ours(model: Path, out: Path, **settings) -> bytes:
    found = measure_importance(model, TEXT, FULL, n_threads=1, **settings)
    entries = {name: (entry.sums, entry.counts) for name, entry in found.entries.items()}
    datasets = [str(random_models.TEXT)]
    quant.write_imatrix(out, entries, datasets=datasets, n_chunks=found.n_chunks, chunk_tokens=found.n_ctx)
    return out.read_bytes()


class TestOracle:
    """Files are those of llama-imatrix, byte for byte."""

    pytestmark = oracle

    @pytest.mark.parametrize(("n_ctx", "n_chunks", "n_batch"), [(64, 3, 2048), (128, 2, 64)])
    def test_smollm2(self, tmp_path, n_ctx, n_chunks, n_batch):
        from liquidcli.hub.default_model import ALIAS
        from liquidcli.hub.resolve import resolve_file

        model = Path(os.environ.get("LIQUID_SMOLLM2") or resolve_file(ALIAS))
        theirs = upstream(model, tmp_path / "theirs.gguf", "-c", n_ctx, "--chunks", n_chunks, "-b", n_batch)
        assert ours(model, tmp_path / "ours.gguf", n_ctx=n_ctx, n_chunks=n_chunks, n_batch=n_batch) == theirs

    @pytest.mark.parametrize("words", [[], ["--process-output"]])
    def test_experts(self, tmp_path, words):
        model = mixture(tmp_path)
        theirs = upstream(model, tmp_path / "theirs.gguf", "-c", 64, "--chunks", 5, *words)
        made = ours(model, tmp_path / "ours.gguf", n_ctx=64, n_chunks=5, process_output=bool(words))
        assert made == theirs and b"ffn_down_exps.weight.counts" in made

    @pytest.mark.parametrize("form", ["gguf", "dat"])
    def test_files_added_up(self, tmp_path, form):
        """Of two texts, with and without a third that is counted on top; both forms in, both out."""
        model, words = mixture(tmp_path), ["-c", 64, "--chunks", 2]
        parts = [tmp_path / f"{i}.{form}" for i in range(2)]
        for skip, part in enumerate(parts):
            upstream(model, part, *words, "--chunk", 3 * skip, "--output-format", form)
        for text in ([], ["-f", random_models.TEXT]):
            for to in ("gguf", "dat"):
                given = [word for part in parts for word in ("--in-file", part)]
                given += [*words, "--output-format", to]
                theirs = tool("-m", model, "-o", tmp_path / f"theirs.{to}", "--no-ppl", "-t", 1, *given, *text)
                said = liquid("imatrix", "-m", model, "-o", tmp_path / f"ours.{to}", "-t", 1, *given, *text)
                assert said.returncode == 0, said.stderr
                mine, found = (tmp_path / f"{who}.{to}" for who in ("ours", "theirs"))
                assert mine.read_bytes() == found.read_bytes(), (text, to, theirs)


def mixture(folder: Path) -> Path:
    """A llama with experts."""
    return random_models.stock(folder, "tiny-moe")
