"""Converting streams: the peak of the resident size follows the largest tensor, not the model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.random_models import BENCHMARKS


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_memory_stays_below_what_the_largest_tensor_allows(outtype: str, tmp_path) -> None:
    """A FlexiDepth checkpoint of 270 MB, its largest tensor 57 MB."""
    command = [sys.executable, str(BENCHMARKS / "convert.py"), "--shape", "smollm2-135m", "--gated", "--sparse"]
    command += ["--outtype", outtype, "--dir", str(tmp_path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout)
    largest = (found["allowed_bytes"] - 500_000_000) // 3
    assert largest == 2 * 49152 * 576
    assert found["peak_bytes"] < 3 * largest + 150_000_000  # the interpreter, numpy and a tensor's pieces
    assert not list(tmp_path.iterdir())
