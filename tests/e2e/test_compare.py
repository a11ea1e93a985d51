"""`liquid compare` as a user types it."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from liquidcli.cli import perplexity_plot, plotting
from liquidcli.errors import UsageError
from liquidcli.runtime.agreement import BUNDLED_PROMPTS, read_prompts
from liquidcli.runtime.compare_report import as_markdown
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
    failed(liquid("compare", pair[0], *FEW, "--types", "Q9_9"), 2, "Q9_9")
    failed(liquid("compare", *pair, *FEW, "--types", "Q8_0"), 2, "one REF")
    failed(liquid("compare", pair[0], *FEW, "--types", " ,"), 2, "--types names no type")
    failed(liquid("compare", pair[0], *FEW, "--types", "IQ2_XXS", "--allow-requantize"), 2, "--imatrix")
    failed(liquid("compare", *pair, *FEW, "--imatrix", "i.gguf"), 2, "--types")
    failed(liquid("compare", *pair, *FEW, "-npl", "0"), 2, "-npl")
    failed(liquid("compare", *pair, *FEW, "--prompts", random_models.TEXT), 2, "--answers")
    failed(liquid("compare", pair[0], *FEW, "--answers", 8), 2, "--base")


QUICK = ["-p", 16, "-n", 4, "-r", 1]


def test_types_are_made_measured_and_deleted(liquid, pair, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = [pair[0], *FEW, *QUICK, "-npl", "1,3", "--types", "Q2_K,Q6_K", "--allow-requantize", "--json"]
    told = json.loads(liquid("compare", *words, TMPDIR=str(temporary)).stdout)
    source, small, large = told["models"]
    assert [row["type"] for row in told["models"][1:]] == ["Q2_K", "Q6_K"] and told["base"] == str(pair[0])
    assert small["size_bytes"] == pair[1].stat().st_size < large["size_bytes"]
    assert source["kld_mean"] is None and small["kld_mean"] > large["kld_mean"] > 0
    assert set(small["decode_parallel_ts"]) == {"3"} and small["decode_parallel_ts"]["3"] > 0
    assert list(temporary.iterdir()) == []


def test_a_smaller_file_measured_later_has_no_larger_peak(liquid, tmp_path):
    """What earlier models left in memory is not counted."""
    source = random_models.gated(tmp_path)
    told = json.loads(liquid("compare", source, source, source, *FEW, *QUICK, "--json").stdout)
    peaks = [row["peak_rss_bytes"] for row in told["models"]]
    assert max(peaks) < 1.1 * min(peaks)


def test_answers(liquid, pair, tmp_path):
    (tmp_path / "asked.txt").write_text("facts\tWho?\nfacts\tWhere?\n\nWhen?\n")
    words = [*FEW, "-p", 0, "-n", 0, "--depth", "full", "--answers", 6, "--prompts", "asked.txt", "--json"]
    base, small = json.loads(liquid("compare", *pair, *words).stdout)["models"]
    assert "same_token_p" not in base
    assert {kind: part["n_prompts"] for kind, part in small["answers"]["kinds"].items()} == {"facts": 2, "other": 1}
    assert small["answers"]["n_prompts"] == 3 and 3 <= small["answers"]["n_tokens"] <= 18
    assert 0 <= small["same_answer_p"] <= small["same_token_p"] <= 1
    (tmp_path / "copy.gguf").write_bytes(pair[0].read_bytes())
    copy = json.loads(liquid("compare", pair[0], "copy.gguf", *words).stdout)["models"][1]
    assert copy["same_token_p"] > 0.9  # all but ties that batches of other sizes break otherwise


def test_prompts_of_several_kinds():
    prompts = read_prompts(BUNDLED_PROMPTS.read_text("utf-8"))
    kinds = [prompt.kind for prompt in prompts]
    assert len({prompt.text for prompt in prompts}) == 60
    assert {kind: kinds.count(kind) for kind in kinds} == {"facts": 20, "reasoning": 20, "arithmetic": 20}
    with pytest.raises(UsageError, match="no prompts"):
        read_prompts(" \n\n")


def test_a_plot_is_a_png_or_is_refused_before_anything_is_measured(liquid, pair, tmp_path):
    words = ["compare", *pair, *FEW, *QUICK, "-npl", "2", "--plot"]
    assert liquid(*words, "curve.png").returncode == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    failed(liquid(*words, "curve.svg"), 2, ".png")
    failed(liquid(*words, "nowhere/curve.png"), 3, "nowhere")


@pytest.mark.parametrize("check", [plotting.check_plot, lambda path: perplexity_plot.check_curve(path, 2)])
def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path, check):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as failure:
        check(tmp_path / "curve.png")
    assert "liquid-depth[plot]" in failure.value.hint


def test_ctrl_c_leaves_no_process_and_no_file(liquid, pair, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = [pair[0], *FEW, "-p", 0, "-n", 256, "-r", 1000, "--types", "Q2_K", "--allow-requantize"]
    process = liquid.start("compare", *words, TMPDIR=str(temporary))
    while "speed" not in process.stderr.readline():
        pass
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    children = [entry for entry in Path("/proc").glob("[0-9]*") if _belongs(entry, str(pair[0]))]
    assert not children and list(temporary.iterdir()) == []


def _belongs(entry: Path, word: str) -> bool:
    try:
        return word in (entry / "cmdline").read_text() or word in (entry / "maps").read_text()
    except OSError:
        return False
