"""`liquid perplexity` as a user types it: the estimate on stdout, JSON as promised, tables, refusals."""

from __future__ import annotations

import json
import signal

import pytest

from tests import random_models
from tests.command import failed

QUICK = ("-c", "64", "--chunks", "4", "-t", "1")
TEXT = ("-f", random_models.TEXT)


def test_chunks_are_talk_and_the_estimate_is_the_result(liquid, models):
    result = liquid("perplexity", "-m", models["stock"], *TEXT, *QUICK)
    assert result.returncode == 0
    assert result.stdout.startswith("Final estimate: PPL = ") and result.stdout.count("\n") == 1
    assert result.stderr.startswith("[1]") and "[4]" in result.stderr
    quiet = liquid("perplexity", "-m", models["stock"], *TEXT, *QUICK, "-q")
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_json_is_the_contract(liquid, models):
    told = json.loads(liquid("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--json").stdout)
    assert (told["n_chunks"], told["n_ctx"], told["n_tokens"], len(told["chunk_ppl"])) == (4, 64, 256, 4)
    assert told["ppl"] == told["chunk_ppl"][-1] and told["ppl_error"] > 0
    depth = told["depth"]
    assert (depth["mode"], depth["layers_total"]) == ("auto", 8) and depth["executed_fraction"] < 0.9
    assert depth["layers_run_mean"] == pytest.approx(8 * depth["executed_fraction"], abs=1e-3)
    assert "base_ppl" not in told


def test_a_comma_list_of_depths_is_one_table_or_one_array(liquid, models):
    args = ("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--depth", "auto,full,tau=0.6")
    rows = json.loads(liquid(*args, "--json").stdout)
    assert [row["depth"]["mode"] for row in rows] == ["auto", "full", "tau=0.6"]
    fractions = [row["depth"]["executed_fraction"] for row in rows]
    assert fractions[1] == 1.0 and fractions[2] < fractions[0] < 1
    table = liquid(*args).stdout.splitlines()
    assert len(table) == 4 and table[0].split()[:2] == ["depth", "layers/token"]
    assert float(table[1].split()[3]) == pytest.approx(rows[0]["ppl"], rel=1e-6) and table[2].split()[0] == "full"


def test_a_base_model_is_compared_live(liquid, models):
    args = ("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--json")
    beside = json.loads(liquid(*args, "--base", models["stock"]).stdout)
    alone = json.loads(liquid(*args, "--kl-divergence").stdout)
    assert beside["kld_mean"] == alone["kld_mean"] > 0  # the stock twin is the model at full depth
    for name in ("base_ppl", "kld_p99", "kld_max", "same_top_p", "ppl_ratio", "p_diff_rms"):
        assert beside[name] == alone[name]
    human = liquid("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--base", models["stock"])
    assert "Base: PPL" in human.stdout and "kld_p99" in human.stdout


def test_hellaswag_scores_tasks(liquid, models, tmp_path):
    task = "the people of the\n1\nunited states\nnation and\nwater\nriver of"
    (tmp_path / "tasks.txt").write_text("\n".join([task] * 3))
    told = json.loads(
        liquid("perplexity", "-m", models["gated"], "-f", "tasks.txt", "--hellaswag", "-t", "1", "--json").stdout
    )
    assert told["n_tasks"] == 3 and told["acc_norm"] in (0.0, 1.0) and told["acc_norm_95"][0] <= told["acc_norm"]
    assert told["depth"]["executed_fraction"] < 1


def test_what_cannot_be_measured_is_refused_in_one_sentence(liquid, models, tmp_path):
    model = ("perplexity", "-m", models["gated"])
    failed(liquid(*model), 2, "a text to measure on")
    failed(liquid(*model, "-f", "nothing.txt"), 3, "nothing.txt", "hint: ls .")
    failed(liquid(*model, "-f", models["gated"]), 2, "is no text but binary")
    failed(liquid(*model, *TEXT, "-c", "4096"), 2, "needs at least 8192", "tokens")
    failed(liquid(*model, *TEXT, "--depth", "0.8"), 2, "80%", "tau=0.8")
    failed(liquid(*model, *TEXT, *QUICK, "--depth", "80%"), 2, "calibration")
    failed(liquid("perplexity", "-m", models["stock"], *TEXT, *QUICK, "--depth", "tau=0.5"), 2, "no gates")
    failed(liquid("perplexity", "-m", "nothing.gguf", *TEXT), 3, "nothing.gguf")
    failed(liquid(*model, "-f", random_models.TEXT, "--hellaswag"), 2, "six lines")
    (tmp_path / "one.txt").write_text("one\n")
    failed(liquid(*model, "-f", "one.txt", "--hellaswag"), 2, "this one has 1 line\n", "the right ending")
    failed(liquid(*model, "-f", "one.txt", "--hellaswag", "--plot", "a.png"), 2, "--plot draws perplexity")
    other = random_models.other_vocabulary(tmp_path)
    failed(liquid(*model, *TEXT, *QUICK, "--base", other), 2, "vocabulary")
    (tmp_path / "empty.txt").write_text("")
    failed(liquid(*model, "-f", "empty.txt"), 2, "at least 1024")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_chunks_are_computed_ends_the_command(liquid, models, tmp_path, how, code):
    (tmp_path / "long.txt").write_text(random_models.TEXT.read_text() * 8)
    process = liquid.start("perplexity", "-m", models["gated"], "-f", "long.txt", "-c", "64", "-b", "64", "-t", "1")
    assert process.stderr.read(3) == "[1]"
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "") and "Traceback" not in err and "Exception" not in err


def test_the_curve_says_what_each_depth_costs_beside_full_and_base(liquid, models):
    args = ("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--depth", "full,tau=0.4,tau=0.6")
    rows = json.loads(liquid(*args, "--base", models["stock"], "--json").stdout)
    assert rows[0]["ppl_ratio_to_full"] == 1.0 and rows[0]["kld_mean"] == pytest.approx(0, abs=1e-6)
    for row in rows:
        assert row["ppl_ratio_to_full"] == pytest.approx(row["ppl"] / rows[0]["ppl"])
        assert row["ppl_ratio"] == pytest.approx(row["ppl"] / row["base_ppl"])
    head, base, *lines = liquid(*args, "--base", models["stock"]).stdout.splitlines()
    told = [rows[0]["base_ppl"], rows[0]["base_ppl_error"]]
    assert base.split()[:2] == ["base", "-"] and [float(n) for n in base.split()[2:4]] == pytest.approx(told, rel=1e-4)
    for name in ("run", "PPL", "ratio", "KLD mean", "same top", "t/s"):
        assert name in head
    assert [line.split()[4] for line in lines] == [f"{row['ppl_ratio_to_full']:.4f}" for row in rows]
    assert max(map(len, [head, *lines])) <= 80


def test_without_full_depth_and_base_there_is_no_ratio(liquid, models):
    args = ("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--depth", "auto,tau=0.6")
    assert "ratio" not in liquid(*args).stdout
    assert "ppl_ratio_to_full" not in json.loads(liquid(*args, "--json").stdout)[0]


def test_a_plot_is_a_png_or_is_refused_before_anything_is_measured(liquid, models, tmp_path):
    model = ("perplexity", "-m", models["gated"], *TEXT, *QUICK)
    assert liquid(*model, "--depth", "full,auto,tau=0.6", "--plot", "curve.png").returncode == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    failed(liquid(*model, "--depth", "full", "--plot", "curve.png"), 2, "several depths")
    failed(liquid(*model, "--depth", "full,auto", "--plot", "curve.svg"), 2, ".png")
    failed(liquid(*model, "--depth", "full,auto", "--plot", "nowhere/curve.png"), 3, "nowhere")
    (tmp_path / "text.png").write_text("a text " * 400)
    same = ("perplexity", "-m", models["gated"], "-f", "text.png", *QUICK, "--depth", "full,auto", "--plot", "text.png")
    failed(liquid(*same), 2, "also the input")
    assert (tmp_path / "text.png").read_text().startswith("a text")


def test_what_was_measured_is_printed_before_it_is_drawn(liquid, models, tmp_path):
    args = ("perplexity", "-m", models["gated"], *TEXT, *QUICK, "--depth", "auto,auto,tau=0.6", "--plot", "curve.png")
    half = tmp_path / "half" / "matplotlib"  # is found, and fails when something is drawn
    half.mkdir(parents=True)
    (half / "__init__.py").write_text("")
    broken = liquid(*args, "--json", PYTHONPATH=str(half.parent))
    assert broken.returncode == 1 and "hint: pip install 'liquid-depth[plot]'" in broken.stderr
    assert [row["depth"]["mode"] for row in json.loads(broken.stdout)] == ["auto", "auto", "tau=0.6"]
    assert liquid(*args).returncode == 0 and (tmp_path / "curve.png").exists()


def test_depths_out_of_reach_are_told_once_each_and_not_when_quiet(liquid, models, tmp_path):
    path = random_models.calibrated(tmp_path, models["gated"], (0.2, 0.8), (0.9, 0.61))
    args = ("perplexity", "-m", path, *TEXT, *QUICK, "--depth", "full,30%,70%,20%")
    told = [line for line in liquid(*args, "--json").stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 2 and "30% is out of reach" in told[0] and "20% is out of reach" in told[1]
    assert "61% to 90%" in told[0]
    assert liquid(*args, "-q").stderr == ""
    bench = ("bench", "-m", path, "-p", "8", "-n", "0", "-r", "1", "-t", "1,1", "--depth", "30%")
    assert liquid(*bench).stderr.count("30% is out of reach") == 1
    failed(liquid("bench", "-m", models["stock"], "-p", "8", "-n", "0", "--depth", "30%"), 2, "no gates")
