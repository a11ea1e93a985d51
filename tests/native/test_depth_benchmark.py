"""benchmarks/depth.py end to end on the smallest shapes: the gates follow their biases and the figures are complete."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from liquidcli.gguf_file import open_gguf
from tests.random_models import BENCHMARKS


def bench(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "depth.py"), *map(str, args), "--threads", "1", "--rounds", "2"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def figures(*args: object) -> list[dict]:
    result = bench(*args, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("gate", ["linear", "bottleneck"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-moe"])
def test_layers_are_skipped_as_asked(shape, gate, tmp_path):
    some, none = figures(
        "--shape", shape, "--gate", gate, "--adapter", 32, "--skip-layers", 3, "--skip-layers", 0,
        "--dir", tmp_path / "m",
    )  # fmt: skip
    assert (some["executed_fraction"], none["executed_fraction"]) == (5 / 8, 1.0)
    assert 0.05 < some["savable"] < 0.4 and -0.05 < none["savable"] < 0  # gates that never skip still cost their bytes
    assert set(some["ms_per_token"]) == {"stock", "full", "skip"}
    assert some["saved_over_savable"] == pytest.approx(some["saved"] / some["savable"], abs=2)
    assert none["saved_over_savable"] is None and some["full_over_stock"] > 0
    assert not (tmp_path / "m").exists()


def test_a_rate_per_token_is_met_by_calibrating_the_biases(tmp_path):
    (found,) = figures("--shape", "tiny", "--skip-rate", 0.5, "--no-stock", "--tokens", 40, "--dir", tmp_path, "--keep")
    assert found["executed_fraction"] == pytest.approx(0.75, abs=0.1)
    assert "stock" not in found["ms_per_token"] and found["full_over_stock"] is None
    (kept,) = tmp_path.glob("*.gguf")
    with open_gguf(kept) as f:
        biases = [float(f.array(f"blk.{layer}.depth_gate.bias")[0]) for layer in range(4, 8)]
    assert all(abs(bias) < 10 for bias in biases) and any(biases)


def test_a_table_is_printed_and_wrong_options_are_one_sentence(tmp_path):
    result = bench("--shape", "tiny", "--skip-layers", "5,7", "--dir", tmp_path)
    assert result.returncode == 0 and "saved/savable" in result.stdout and "2 of 8 skipped" in result.stdout
    wrong = bench("--shape", "tiny", "--skip-layers", 5)
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith("error: 5 layers are to be skipped")


def test_ctrl_c_leaves_no_model_behind(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "depth.py"), "--shape", "tiny", "--dir", str(tmp_path / "m")]
    process = subprocess.Popen(
        [*command, "--rounds", "100000", "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "m").glob("*.gguf"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    assert not (tmp_path / "m").exists()
