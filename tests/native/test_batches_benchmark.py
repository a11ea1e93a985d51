"""benchmarks/batches.py on the smallest shape: decisions are taken as asked multiplications counted right."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.random_models import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))
from needed import work_of
from shapes import SHAPES, Gates


def bench(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "batches.py"), "--shape", "tiny", "--threads", "1", "--rounds", "1"]
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("load", [("--prompt", 40), ("--sequences", 8, "--steps", 3)])
def test_rows_skip_as_asked(load, tmp_path):
    result = bench(*load, "--skip-rate", 0.5, "--skip-rate", 1, "--adapter", 32, "--dir", tmp_path / "m", "--json")
    assert result.returncode == 0, result.stderr
    half, all_ = json.loads(result.stdout)
    assert half["executed_fraction"] == pytest.approx(0.5, abs=0.12) and all_["executed_fraction"] == 0
    assert all_["needed"] < half["needed"] < 1
    assert half["over_needed"] == pytest.approx(half["skip_over_full"] / half["needed"])
    assert not (tmp_path / "m").exists()


def test_what_is_needed_is_counted_by_hand():
    shape = SHAPES["tiny"]  # 8 layers, n_embd 256, n_ff 768, K and V 128 each, 1024 tokens
    run = np.ones((1, 2, 1), np.uint8)
    run[0, 1, 0] = 0
    work = work_of(shape, Gates((7,), adapter=32), run, outputs=1)
    matrices = 2 * 256 * 256 + 3 * 256 * 768
    row = [matrices + 2 * 256 * n for n in (1, 2)]  # attention sees one position, then two
    full = 8 * (sum(row) + 2 * 2 * 256 * 128) + 256 * 1024
    assert work.full == full
    assert work.skipping == full - row[1] + 3 * 256 * 32 + 2 * 256
    dropping = work_of(shape, Gates((7,), adapter=32, kv_policy="drop"), run, outputs=1)
    assert dropping.skipping == work.skipping - 2 * 256 * 128


def test_wrong_options_are_one_sentence():
    result = bench("--skip-rate", 2)
    assert (result.returncode, result.stdout) == (2, "") and result.stderr.startswith("error: --skip-rate lies between")
