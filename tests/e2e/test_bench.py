"""`liquid bench` as a user types it: llama-bench's table and fields, depths side by side, what gated models are fed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal

import pytest

from tests import random_models
from tests.command import failed

QUICK = ("-p", "16", "-n", "4", "-r", "2", "-t", "1")


def test_the_table_is_llama_benchs(liquid, models):
    result = liquid("bench", "-m", models["stock"], *QUICK)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == ""
    assert [cell.strip() for cell in lines[0].split("|")[1:8]] == [
        "model", "size", "params", "backend", "threads", "test", "t/s",
    ]  # fmt: skip
    assert "pp16" in lines[2] and "tg4" in lines[3] and "±" in lines[2] and lines[-1].startswith("build: ")


def test_json_has_the_fields_of_llama_bench_and_the_depth(liquid, models):
    rows = json.loads(liquid("bench", "-m", models["gated"], *QUICK, "--depth", "auto,full", "-o", "json").stdout)
    assert [(row["n_prompt"], row["n_gen"], row["depth_mode"]) for row in rows] == [
        (16, 0, "auto"), (16, 0, "full"), (0, 4, "auto"), (0, 4, "full"),
    ]  # fmt: skip
    for row in rows:
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ns"] == pytest.approx(sum(row["samples_ns"]) / 2, abs=1)
        assert (row["executed_fraction"] == 1.0) == (row["depth_mode"] == "full")
        assert row["peak_rss_bytes"] > row["model_size"] > row["kv_bytes"] > 0
        assert (row["n_threads"], row["type_k"], row["n_batch"], row["fed"]) == (1, "f16", 2048, "text")


def test_lists_and_ranges_multiply(liquid, models):
    lists = ("-p", "8-16+8", "-n", "0", "-d", "0,32", "-b", "32,64")
    rows = json.loads(liquid("bench", "-m", models["stock"], *lists, "-r", "1", "-t", "1", "--json").stdout)
    assert [(row["n_batch"], row["n_depth"], row["n_prompt"]) for row in rows] == [
        (b, d, p) for b in (32, 64) for d in (0, 32) for p in (8, 16)
    ]


def test_words_in_capitals_and_what_was_measured_before_a_failure(liquid, models):
    words = ("bench", "-m", models["stock"], "-p", "8", "-n", "0", "-r", "1", "-t", "1", "--json")
    rows = json.loads(liquid(*words, "-fa", "ON", "-ngl", "0, All").stdout)
    assert [(row["flash_attn"], row["n_gpu_layers"]) for row in rows] == [(1, 0), (1, -1)]
    result = liquid(*words, "-ctk", "f16,f17")
    assert result.returncode == 2 and "f17" in result.stderr
    assert [row["type_k"] for row in json.loads(result.stdout)] == ["f16"]


def test_csv_and_json_lines(liquid, models):
    (row,) = csv.DictReader(io.StringIO(liquid("bench", "-m", models["stock"], *QUICK, "-n", "0", "-o", "csv").stdout))
    assert row["n_prompt"] == "16" and float(row["avg_ts"]) > 0 and row["depth_mode"] == "auto"
    lines = liquid("bench", "-m", models["stock"], *QUICK, "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line)["n_gen"] for line in lines] == [0, 4]


def test_gated_models_are_fed_text_and_told_so(liquid, models, tmp_path):
    told = liquid("bench", "-m", models["gated"], *QUICK, "-o", "jsonl")
    assert re.fullmatch(r"liquid \d+\.\dM .+", json.loads(told.stdout.splitlines()[0])["model_type"])
    assert "--random" in told.stderr and json.loads(told.stdout.splitlines()[0])["fed"] == "text"
    random = liquid("bench", "-m", models["gated"], *QUICK, "-o", "jsonl", "--random")
    assert random.stderr == "" and json.loads(random.stdout.splitlines()[0])["fed"] == "random"
    (tmp_path / "own.txt").write_text("a text of my own")
    own = liquid("bench", "-m", models["stock"], *QUICK, "-o", "jsonl", "-f", "own.txt")
    assert json.loads(own.stdout.splitlines()[0])["fed"] == "text"


def test_what_cannot_be_timed_is_refused_in_one_sentence(liquid, models):
    model = ("bench", "-m", models["stock"])
    failed(liquid(*model, "-p", "0", "-n", "0"), 2, "nothing to time")
    failed(liquid(*model, "-p", "many"), 2, "-p", "many")
    failed(liquid(*model, "-o", "xml"), 2, "xml", "jsonl")
    failed(liquid(*model, "--depth", "tau=0.5"), 2, "no gates")
    failed(liquid(*model, "-ctk", "q3"), 2, "q3")
    failed(liquid(*model, "-fa", "maybe"), 2, "maybe")
    failed(liquid(*model, "-pg", "3"), 2, "-pg 512,128")
    failed(liquid(*model, "-f", "nothing.txt"), 3, "nothing.txt")
    failed(liquid(*model, "-f", os.devnull), 2, "is empty")
    failed(liquid("bench", "-m", "nothing.gguf"), 3, "nothing.gguf")
    too_much = liquid(*model, "-d", "1000000000")
    failed(too_much, 5, "-p, -n, -d")
    assert "-c N" not in too_much.stderr


def test_ctrl_c_ends_with_130_and_prints_no_half_table(liquid, models):
    process = liquid.start("bench", "-m", models["gated"], "-r", "10000", "-t", "1", "-p", "16", "-n", "0")
    assert process.stderr.read(5) == "gates"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err


def test_a_model_that_drops_keys_and_values_tells_from_which_context_on_that_saves(liquid, tmp_path):
    model = random_models.gated(tmp_path, kv_policy="drop")
    command = ("bench", "-m", model, "-p", "0", "-n", "40", "-r", "1", "-t", "1", "--depth", "auto,full")
    auto, full = json.loads(liquid(*command, "--json").stdout)
    assert auto["kv_bytes"] < full["kv_bytes"] == full["kv_bytes_full"] == auto["kv_bytes_full"]
    assert full["n_ctx_saving_40"] is None
    saved = 1 - auto["kv_bytes"] / full["kv_bytes"]
    assert (auto["n_ctx_saving_40"] is not None) == (saved > 0.4)
    (line,) = [line for line in liquid(*command).stdout.splitlines() if line.startswith("depth auto")]
    assert "of K and V a token" in line and "saves 40 %" in line
