"""benchmarks/memory.py on the smallest shape: under `drop`, K and V are as many as the layers that ran."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.random_models import BENCHMARKS


@pytest.mark.parametrize("policy", ["drop", "project"])
def test_bytes_follow_what_ran(policy, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--shape", "tiny", "--threads", "1", "--json"]
    command += ["--context", "600", "--kv-policy", policy, "--dir", str(tmp_path / "m")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)
    assert 0.4 < found["executed_fraction"] < 0.6
    kept = found["executed_fraction"] if policy == "drop" else 1
    assert found["kv_over_full"] == pytest.approx(kept, rel=0.02)
    assert found["full"]["peak_bytes"] > found["full"]["idle_bytes"] > 0
    assert not (tmp_path / "m").exists()
