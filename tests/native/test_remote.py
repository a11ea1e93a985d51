"""A device that claims to support every op (RPC) is given none of ours, and computes what the CPU computes.

Needs a library compiled with -DGGML_RPC=ON and its server beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.native.backends import server

PLACED = re.compile(r"node #\s*\d+ \(\s*(\w+)\):[^\[]*\[\s*(\w+)")  # op, device
pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def rpc() -> None:
    if server() is None:
        pytest.skip("the library was compiled without the RPC backend")


@pytest.mark.parametrize(
    "family", ["moe", "every-scope", "exit-halves", "drop-span2", "drop-sliding", "drop-exit-halves"]
)
def test_no_op_of_ours_leaves_this_process(family: str) -> None:
    command = [sys.executable, "-m", "tests.native.backends", "--rpc", "--family", family]
    environment = {**os.environ, "GGML_SCHED_DEBUG": "2", "LIQUID_DEBUG": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    placed = set(PLACED.findall(done.stderr))
    assert {device for op, device in placed if op == "CUSTOM"} == ({"CPU"} if family.startswith("drop") else set())
    assert any(op == "MUL_MAT" and device.startswith("RPC") for op, device in placed)
    errors = [float(error) for error in re.findall(r"offloaded: (\S+), same decisions", done.stdout)]
    assert len(errors) == 4 and max(errors) <= 1e-3, done.stdout
