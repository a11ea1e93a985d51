"""What the parity tests compare with: the unpatched library of the same archive, and upstream's own tools."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from liquidbuild.pin import read_pin

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif("LIQUID_ORACLE_DIR" not in os.environ, reason="LIQUID_ORACLE_DIR names no unpatched build"),
]


@pytest.fixture
def folder() -> Path:
    return Path(os.environ["LIQUID_ORACLE_DIR"])


def test_the_library_is_not_ours(folder: Path) -> None:
    library = ctypes.CDLL(str(next(folder.glob("libllama.*"))))
    assert hasattr(library, "llama_decode") and not hasattr(library, "liquid_api_version")


@pytest.mark.parametrize("tool", ["llama-perplexity", "llama-quantize", "llama-imatrix"])
def test_the_tools_start(folder: Path, tool: str) -> None:
    done = subprocess.run([folder / tool, "--help"], capture_output=True, text=True, check=False)
    assert "usage" in (done.stdout + done.stderr).lower()


def test_the_tools_are_of_the_pinned_commit(folder: Path) -> None:
    done = subprocess.run([folder / "llama-perplexity", "--version"], capture_output=True, text=True, check=True)
    assert read_pin().commit in done.stdout + done.stderr


def test_the_converter_starts(folder: Path) -> None:
    command = [sys.executable, folder / "convert_hf_to_gguf.py", "--help"]
    assert "usage" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
