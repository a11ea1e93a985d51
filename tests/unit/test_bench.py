"""What `bench` feeds, in which turns, and how samples become llama-bench's records and tables."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

from liquidcli.errors import UsageError
from liquidcli.runtime import bench_report
from liquidcli.runtime.bench import (
    BUNDLED_TEXT,
    Result,
    parse_numbers,
    plan_tests,
    random_tokens,
    run_test,
    text_tokens,
)
from liquidcli.runtime.bench import Test as BenchTest
from liquidcli.runtime.depth import DepthPolicy, DepthStats

AUTO, FULL, HALF = (DepthPolicy.parse(text) for text in ("auto", "full", "tau=0.5"))


class Recorder:
    """An engine that only remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.policy = AUTO
        self.n_tokens = 0

    def set_depth(self, policy):
        self.policy = policy
        self.calls.append(("depth", str(policy)))

    def clear(self):
        self.calls.append(("clear",))

    def reset_stats(self):
        self.n_tokens = 0
        self.calls.append(("reset",))

    def depth_stats(self):
        runs = self.n_tokens * (10 if self.policy is FULL else 8)
        return DepthStats(10, self.n_tokens, runs)

    def kv_bytes(self):
        return 100 * self.n_tokens

    def decode(self, tokens, logits):
        assert logits == "last"
        self.n_tokens += len(tokens)
        self.calls.append(("decode", np.asarray(tokens).tolist()))

    def tokenize(self, text, add_special):
        assert add_special
        return [1, *text.encode()]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("512", [512]), ("128,512", [128, 512]), ("1-4", [1, 2, 3, 4]), ("0-64+16", [0, 16, 32, 48, 64]),
     ("128-1024*2", [128, 256, 512, 1024]), ("5,1-2", [5, 1, 2])],
)  # fmt: skip
def test_lists_and_ranges_read_as_in_llama_bench(text, numbers):
    assert parse_numbers(text, "-p") == numbers


@pytest.mark.parametrize("text", ["", "x", "1,", "-5", "1-", "0-8*2", "1-8*1", "1-8+0", "4-8**2"])
def test_a_list_that_cannot_be_read_or_never_ends_is_refused(text):
    with pytest.raises(UsageError, match="-p"):
        parse_numbers(text, "-p")


def test_tests_are_prompts_then_generation_then_both_at_each_context():
    labels = [test.label for test in plan_tests([16, 32], [8], [(4, 2)], [0, 100])]
    assert labels == ["pp16", "pp32", "tg8", "pp4+tg2", "pp16 @ d100", "pp32 @ d100", "tg8 @ d100", "pp4+tg2 @ d100"]
    assert [test.label for test in plan_tests([0], [8], [], [0])] == ["tg8"]
    with pytest.raises(UsageError):
        plan_tests([0], [0], [], [0])


def test_depths_take_turns_and_each_sample_starts_from_its_own_context():
    engine = Recorder()
    test = BenchTest(n_prompt=3, n_gen=2, n_depth=4)
    results = run_test(engine, test, [AUTO, FULL, HALF], np.arange(9), repetitions=2, n_batch=2)
    order = [call[1] for call in engine.calls if call[0] == "depth"]
    assert order == ["auto", "full", "tau=0.5", "auto", "full", "tau=0.5", "full", "tau=0.5", "auto"]
    last = max(i for i, call in enumerate(engine.calls) if call[0] == "depth")
    assert engine.calls[last:] == [
        ("depth", "auto"), ("clear",), ("decode", [0, 1]), ("decode", [2, 3]), ("reset",),
        ("decode", [4, 5]), ("decode", [6]), ("decode", [7]), ("decode", [8]),
    ]  # fmt: skip
    assert [len(result.samples_ns) for result in results] == [2, 2, 2]
    assert [result.stats.n_tokens for result in results] == [10, 10, 10]
    assert [result.stats.executed_fraction for result in results] == [0.8, 1.0, 0.8]
    assert results[0].peak_rss_bytes > 1 << 20
    assert results[0].kv_bytes == 100 * results[0].stats.n_tokens // len(results[0].samples_ns)


def test_figures_are_means_and_deviations_of_the_samples():
    result = Result(BenchTest(0, 10), AUTO, samples_ns=[1_000_000_000, 2_000_000_000])
    figures = result.figures()
    assert figures["samples_ts"] == [10.0, 5.0]
    assert (figures["avg_ts"], figures["avg_ns"]) == (7.5, 1_500_000_000)
    assert figures["stddev_ts"] == pytest.approx(np.std([10.0, 5.0], ddof=1))
    assert Result(BenchTest(0, 10), AUTO, samples_ns=[5]).figures()["stddev_ns"] == 0


def test_text_is_fed_in_order_and_begun_again_when_it_is_too_short():
    assert text_tokens(Recorder(), "ab", 7).tolist() == [1, 97, 98, 1, 97, 98, 1]
    assert len(BUNDLED_TEXT.read_text("ascii").split()) > 4000


def test_random_tokens_are_in_the_vocabulary_and_begin_with_bos():
    tokens = random_tokens(1000, 50, 1)
    assert tokens[0] == 1 and tokens.min() >= 0 and tokens.max() < 50 and len(set(tokens.tolist())) > 40
    assert random_tokens(1000, 50, None).tolist()[1:] == tokens.tolist()[1:]


@pytest.fixture
def records(monkeypatch):
    metadata = {
        "general.architecture": "llama", "llama.block_count": 10, "llama.embedding_length": 64,
        "llama.attention.head_count": 8, "llama.attention.head_count_kv": 2, "llama.vocab_size": 100,
    }  # fmt: skip
    facts = {"build_commit": "a-b", "build_number": 0, "cpu_info": "CPU, 2 GHz", "gpu_info": "", "backends": "CPU"}
    monkeypatch.setattr(bench_report, "library_facts", lambda: facts)
    model = {"model_type": "llama 1B", "model_size": 2 << 30, "model_n_params": 10**9}
    monkeypatch.setattr(bench_report, "model_facts", lambda _: model)
    info = SimpleNamespace(metadata=metadata, path="m.gguf", n_threads=2, kv_policy="none")
    engine = SimpleNamespace(info=info)
    settings = {
        "n_batch": 2048, "n_ubatch": 512, "type_k": "f16", "type_v": "q8_0", "n_gpu_layers": "auto", "flash_attn": "on",
    }  # fmt: skip
    made = []
    for policy, test in ((AUTO, BenchTest(16, 0)), (FULL, BenchTest(0, 8, 100))):
        result = Result(test, policy, [1000, 2000], DepthStats(10, 100, 1000 if policy is FULL else 850), 5 << 20)
        made.append(bench_report.record(engine, result, settings, "text"))
    return made


LLAMA_BENCH_FIELDS = {
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type", "model_size",
    "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask", "cpu_strict", "poll", "type_k", "type_v",
    "n_gpu_layers", "n_cpu_moe", "split_mode", "main_gpu", "no_kv_offload", "flash_attn", "devices", "tensor_split",
    "tensor_buft_overrides", "load_mode", "lazy_mode", "embeddings", "no_op_offload", "no_host", "repack",
    "fit_target", "fit_min_ctx", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts",
    "stddev_ts", "samples_ns", "samples_ts",
}  # fmt: skip


def test_a_record_has_every_field_of_llama_bench_and_our_own(records):
    assert set(records[0]) >= LLAMA_BENCH_FIELDS
    assert records[0]["depth_mode"] == "auto" and records[0]["executed_fraction"] == 0.85
    assert records[0]["flash_attn"] == 1 and records[0]["n_gpu_layers"] == -1
    # 10 layers x 2 heads x 8 numbers: K at 16 bits, V at 8.5 bits, 16 tokens
    assert records[0]["kv_bytes"] == 16 * 10 * 16 * (16 + 8.5) / 8
    json.dumps(records)


def test_csv_and_json_lines_hold_the_same_values(records):
    rows = list(csv.DictReader(io.StringIO(bench_report.as_csv(records))))
    lines = [json.loads(line) for line in bench_report.as_jsonl(records).splitlines()]
    assert len(rows) == len(lines) == 2
    assert rows[0]["cpu_info"] == lines[0]["cpu_info"] == "CPU, 2 GHz"
    assert rows[0]["repack"] == "1" and lines[0]["repack"] is True
    assert "samples_ns" not in rows[0] and lines[0]["samples_ns"] == [1000, 2000]


def test_the_table_shows_depth_only_where_there_is_something_to_show(records):
    table = bench_report.as_markdown(records).splitlines()
    assert table[0].split("|")[6].strip() == "depth" and "85.0%" in table[2] and "tg8 @ d100" in table[3]
    assert len({len(line) for line in table}) == 1
    plain = [{**row, "depth_mode": "auto", "executed_fraction": 1.0} for row in records]
    assert "depth" not in bench_report.as_markdown(plain).splitlines()[0]


def test_where_keys_and_values_are_dropped_a_line_tells_from_which_context_on_that_saves(records):
    assert bench_report.savings(records) == [] and "n_ctx_saving_40" not in records[0]
    found = bench_report._saving("drop", 100, 40 * 100, 100 * 100, 104000)
    assert found == {"kv_bytes_full": 10000, "n_ctx_saving_40": 2000}  # 0.4 * 100000 / (0.6 * 100 - 40)
    assert bench_report._saving("drop", 100, 70 * 100, 100 * 100, 107000)["n_ctx_saving_40"] is None
    assert bench_report._saving("project", 100, 10000, 10000, 10**6) == {}
    rows = [
        {**records[0], "n_prompt": n, "kv_bytes": 40 * n, "peak_rss_bytes": 10**5, "kv_bytes_full": 100 * n}
        | {"n_ctx_saving_40": 7 * n}
        for n in (100, 300, 200)
    ]
    (line,) = bench_report.savings([*rows, {**rows[0], "depth_mode": "full", "executed_fraction": 1.0}])
    assert line.startswith("depth auto: the whole process saves 40 % from a context of 2100 tokens on (")
