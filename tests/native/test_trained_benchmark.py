"""benchmarks/trained.py on a small model: what could be saved follows from the decisions that were taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.random_models import BENCHMARKS, TEXT, gated, stock


def bench(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "trained.py"), *map(str, args), "--text", str(TEXT), "--threads", "1"]
    command += ["--rounds", "1", "--prompt", "64", "--tokens", "6"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_what_is_savable_follows_the_decisions(tmp_path):
    model = gated(tmp_path)
    result = bench(model, "--depth", "auto", "--depth", "full", "--depth", "tau=1", "--json")
    assert result.returncode == 0, result.stderr
    prompt, prompt_full, prompt_none, tokens, tokens_full, tokens_none = json.loads(result.stdout)
    for auto, full, none in ((prompt, prompt_full, prompt_none), (tokens, tokens_full, tokens_none)):
        assert 0.5 < auto["executed_fraction"] <= 7 / 8 and full["executed_fraction"] == 1
        assert none["executed_fraction"] == pytest.approx(0.5)
        assert full["savable"] <= 0 < auto["savable"] < none["savable"] < 0.5  # K, V, adapters and the head remain
        assert auto["rounds"] == len(auto["round_ms"]["auto"]) == 1
    assert prompt["what"] == "prompt of 64" and tokens["what"] == "6 single tokens"


def test_a_model_without_gates_is_one_sentence(tmp_path):
    result = bench(stock(tmp_path))
    assert (result.returncode, result.stdout) == (2, "") and "needs gates" in result.stderr
    assert result.stderr.count("\n") == 1
