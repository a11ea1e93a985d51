"""`liquid imatrix` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liquidcli.gguf_file import open_gguf
from tests import random_models
from tests.command import Liquid, failed


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_HUB_OFFLINE": "1"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_models.gated(tmp_path)


def test_make_one_and_quantize_with_it(liquid, model, tmp_path):
    words = ["-m", model, "-f", random_models.TEXT, "-c", 64, "--chunks", 2, "-t", 1]
    result = liquid("imatrix", *words)
    assert (result.returncode, result.stdout) == (0, "imatrix.gguf\n") and "over 2 chunks of 64 tokens" in result.stderr
    made = tmp_path / "imatrix.gguf"
    told = json.loads(liquid("imatrix", *words, "-o", tmp_path / "again.gguf", "--json").stdout)
    assert told["n_entries"] == 8 * 7 + 4 * 3 and told["n_chunks"] == 2 and told["depth"]["executed_fraction"] < 1
    assert made.read_bytes() == (tmp_path / "again.gguf").read_bytes()
    result = liquid("quantize", model, tmp_path / "q.gguf", "IQ2_M", "--imatrix", made, "--allow-requantize")
    assert result.returncode == 0, result.stderr
    with open_gguf(tmp_path / "q.gguf") as f:
        assert f.metadata["quantize.imatrix.chunks_count"] == 2
        assert f.metadata["quantize.imatrix.dataset"] == str(random_models.TEXT)


def test_wrong_words(liquid, model, tmp_path):
    failed(liquid("imatrix", "-m", model), 2, "a text to measure on is needed", "liquid imatrix -m MODEL")
    failed(liquid("imatrix", "-m", model, "-f", tmp_path / "none"), 3)
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, "-c", 4096), 2, "needs at least 8192")
    text = tmp_path / "text"
    text.write_text("no matrix")
    words = ["quantize", model, "Q8_0", "--allow-requantize", "--imatrix"]
    failed(liquid(*words, text), 6, "neither a GGUF file nor a whole importance matrix")
    failed(liquid(*words, model), 6, "is no importance matrix")
    assert not (tmp_path / "imatrix.gguf").exists()
