"""`perplexity` and `bench` on the library itself: depth settings, batches, a base model, and what `full` must equal."""

from __future__ import annotations

import json

import numpy as np
import pytest

from liquidcli.errors import UsageError
from liquidcli.runtime.bench import Test as BenchTest
from liquidcli.runtime.bench import random_tokens, run_test
from liquidcli.runtime.bench_report import record
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from liquidcli.runtime.perplexity import measure
from tests import random_models

TEXT = random_models.TEXT.read_text()
AUTO, FULL, DEEP = (DepthPolicy.parse(text) for text in ("auto", "full", "tau=0.0"))


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return random_models.gated(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return random_models.stock(tmp_path_factory.mktemp("stock"))


def run(path, *policies, n_ctx=64, n_chunks=6, n_batch=256, **more):
    return [r.as_json() for r in measure(path, TEXT, policies, n_ctx, n_chunks, n_batch, n_threads=1, **more)]


def test_full_depth_is_the_llama_twin_to_the_last_bit(gated, stock):
    (full,), (twin,) = run(gated, FULL), run(stock, AUTO)
    assert full["chunk_ppl"] == twin["chunk_ppl"] and full["ppl_error"] == twin["ppl_error"]
    assert full["depth"]["executed_fraction"] == twin["depth"]["executed_fraction"] == 1.0


def test_depths_of_one_run_equal_runs_of_their_own_and_count_their_layers(gated):
    together = run(gated, FULL, AUTO, DEEP)
    alone = [run(gated, policy)[0] for policy in (FULL, AUTO, DEEP)]
    assert [r["chunk_ppl"] for r in together] == [r["chunk_ppl"] for r in alone]
    assert [r["depth"] for r in together] == [r["depth"] for r in alone]
    full, auto, deep = (r["depth"]["executed_fraction"] for r in together)
    assert full == 1.0 and 5 / 8 < auto < 7 / 8  # layer 5 is always skipped, 6 and 7 now and then
    assert deep == 7 / 8 or deep == 1.0  # w of a bias of -100 rounds to 0, which no threshold of 0 lets through
    assert len({r["ppl"] for r in together}) > 1
    assert together[1]["n_tokens"] == 6 * 64 and together[1]["n_scored"] == 6 * 31


def test_chunks_side_by_side_equal_chunks_one_by_one(gated):
    (side_by_side,), (one_by_one,) = run(gated, FULL, n_batch=256), run(gated, FULL, n_batch=64)
    assert side_by_side["chunk_ppl"] == pytest.approx(one_by_one["chunk_ppl"], rel=1e-3)
    (split,) = run(gated, FULL, n_batch=24)
    assert split["chunk_ppl"] == pytest.approx(one_by_one["chunk_ppl"], rel=1e-2)


def test_a_base_is_compared_at_full_depth_whatever_the_model_runs_at(gated, stock):
    auto, full = run(gated, AUTO, FULL, base_path=gated)
    assert full["kld_mean"] == 0.0 and full["same_top_p"] == 1.0 and full["ppl"] == pytest.approx(full["base_ppl"])
    assert auto["kld_mean"] > 1e-4 and auto["base_ppl"] == full["base_ppl"]
    assert auto["ppl_ratio"] == pytest.approx(auto["ppl"] / full["ppl"], rel=1e-6)
    (beside_stock,) = run(gated, AUTO, base_path=stock)
    assert beside_stock["kld_mean"] == auto["kld_mean"]


def test_models_of_different_vocabularies_cannot_be_compared(gated, tmp_path):
    with pytest.raises(UsageError, match="vocabulary"):
        run(gated, AUTO, base_path=random_models.other_vocabulary(tmp_path))


def test_moe_models_report_their_experts(tmp_path):
    auto, full = run(random_models.gated(tmp_path, "tiny-moe", kind="bottleneck", rank=16), AUTO, FULL)
    (twin,) = run(random_models.stock(tmp_path, "tiny-moe"), AUTO)
    assert full["chunk_ppl"] == twin["chunk_ppl"]
    assert full["depth"]["experts"] == {"per_layer": 8, "used_mean": 2.0}
    assert auto["depth"]["experts"]["used_mean"] == pytest.approx(2 * auto["depth"]["executed_fraction"], abs=1e-3)


def test_bench_counts_layers_of_the_timed_tokens_only(gated):
    settings = {
        "n_batch": 64, "n_ubatch": 64, "n_gpu_layers": "auto", "type_k": "f16", "type_v": "f16", "flash_attn": "auto",
    }  # fmt: skip
    test = BenchTest(n_prompt=16, n_gen=4, n_depth=32)
    with Engine.load(gated, n_ctx=test.n_ctx, n_threads=1, **settings) as engine:
        tokens = random_tokens(test.n_ctx, engine.info.n_vocab, engine.model.bos)
        full, auto = run_test(engine, test, [FULL, AUTO], tokens, repetitions=2, n_batch=64)
        rows = [record(engine, result, settings, "random") for result in (full, auto)]
    assert full.stats.n_tokens == auto.stats.n_tokens == 2 * (16 + 4)
    assert rows[0]["executed_fraction"] == 1.0 and 5 / 8 < rows[1]["executed_fraction"] < 7 / 8
    assert rows[0]["model_n_params"] > rows[0]["model_size"] > 1e6 and rows[0]["model_type"].startswith("liquid")
    assert all(ns > 0 for ns in rows[1]["samples_ns"]) and rows[1]["cpu_info"]
    json.dumps(rows)
    assert np.isclose(rows[0]["avg_ts"], np.mean([1e9 * 20 / ns for ns in rows[0]["samples_ns"]]))
