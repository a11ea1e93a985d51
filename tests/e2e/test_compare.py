"""`liquid compare` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquidcli.runtime.compare import as_markdown
from tests import random_models
from tests.command import Liquid, failed

FEW = ["-f", random_models.TEXT, "-c", 64, "--chunks", 2, "-t", 1]


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_HUB_OFFLINE": "1"})


@pytest.fixture
def pair(liquid, tmp_path: Path) -> list[Path]:
    source = random_models.gated(tmp_path)
    small = tmp_path / "small.gguf"
    assert liquid("quantize", source, small, "Q2_K", "--allow-requantize").returncode == 0
    return [source, small]


def test_the_first_is_the_base_of_the_others(liquid, pair):
    told = json.loads(liquid("compare", *pair, *FEW, "-p", 32, "-n", 4, "-r", 1, "--depth", "full", "--json").stdout)
    first, second = told["models"]
    assert told["base"] == str(pair[0]) and first["kld_mean"] is None
    assert second["size_bytes"] == pair[1].stat().st_size < first["size_bytes"]
    assert second["type"] == "Q2_K" and second["kld_mean"] > 0 and 0 < second["same_top_p"] <= 1
    assert second["bits_per_weight"] < first["bits_per_weight"]
    assert all(row["prompt_ts"] > 0 and row["decode_ts"] > 0 and row["peak_rss_bytes"] > 1e6 for row in (first, second))
    words = [pair[1], *FEW, "--depth", "full", "--base", pair[0], "--json"]
    alone = json.loads(liquid("perplexity", "-m", *words).stdout)
    assert (second["ppl"], second["kld_mean"]) == (alone["ppl"], alone["kld_mean"])


def test_a_table(liquid, pair):
    lines = liquid("compare", *pair, *FEW, "-p", 0, "-n", 0).stdout.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:6]] == ["model", "type", "size, MB", "bits/weight", "PPL"]
    assert len(lines) == 4 and "tok/s" not in lines[0] and lines[3].startswith("| small | Q2_K |")


def test_cells_without_a_value():
    rows = [{"name": "a", "ppl": 1.0}, {"name": "b", "ppl": None}]
    assert as_markdown(rows).splitlines() == ["| model | PPL |", "| --- | ---: |", "| a | 1.0000 |", "| b | - |"]


def test_wrong_words(liquid, pair, tmp_path):
    failed(liquid("compare", *pair, "--depth", "auto,full"), 2, "takes one depth")
    failed(liquid("compare", tmp_path / "none.gguf", *FEW), 3)
