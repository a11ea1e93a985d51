"""`liquid imatrix` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from liquidcli.gguf_file import open_gguf
from liquidcli.quant import write_imatrix
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


def test_files_are_added_up_without_a_model(liquid, model, tmp_path):
    words = ["-f", random_models.TEXT, "-c", 64, "-t", 1]
    for n in (1, 2):
        assert liquid("imatrix", "-m", model, *words, "--chunks", n, "-o", f"{n}.gguf").returncode == 0
    told = json.loads(liquid("imatrix", "--in-file", "1.gguf", "--in-file", "2.gguf", "-c", 64, "--json").stdout)
    assert told["n_chunks"] == 3 and told["n_tokens"] == 192 and told["model"] is None
    other = liquid("imatrix", "--in-file", "1.gguf", "--in-file", "2.gguf", "-o", "o.gguf")
    assert "over 192 tokens, 2 files of them added" in other.stderr, "whatever a chunk was"
    with open_gguf(tmp_path / "imatrix.gguf", require_architecture=False) as f:
        assert f.metadata["imatrix.datasets"] == [str(random_models.TEXT)] * 2
        assert f.array("blk.0.attn_q.weight.counts").item() == 192
    words = ["--in-file", "imatrix.gguf", "-c", 64, "--output-format", "dat", "-o", "i.dat"]
    result = liquid("imatrix", *words)  # layer 5 never ran: nothing is known of it
    assert result.returncode == 0 and "matrices that no token used are left out" in result.stderr
    assert not (tmp_path / "i.dat").read_bytes().startswith(b"GGUF")
    assert liquid("quantize", model, "q.gguf", "Q4_0", "--imatrix", "i.dat", "--allow-requantize").returncode == 0
    narrow = {"blk.0.attn_q.weight": (np.ones((1, 3), np.float32), np.ones(1, np.int64))}
    write_imatrix(tmp_path / "o.gguf", narrow, datasets=["text"], n_chunks=1, chunk_tokens=64)
    failed(liquid("imatrix", "--in-file", "1.gguf", "--in-file", "o.gguf", "-c", 64), 6, "o.gguf is of another model")


def test_wrong_words(liquid, model, tmp_path):
    failed(liquid("imatrix", "-m", model), 2, "a text to measure on is needed", "liquid imatrix -m MODEL")
    failed(liquid("imatrix", "-m", model, "-f", tmp_path / "none"), 3)
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, "-c", 4096), 2, "needs at least 8192")
    text = tmp_path / "text"
    text.write_text("no matrix")
    failed(liquid("imatrix", "--in-file", text), 6, "neither a GGUF file nor a whole importance matrix")
    failed(liquid("imatrix", "--in-file", model), 6, "is no importance matrix")
    failed(liquid("imatrix", "--in-file", tmp_path / "none.gguf"), 3)
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, "--output-format", "bin"), 2, "gguf or dat")
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, "-o", tmp_path), 2, "is a folder")
    failed(liquid("imatrix", "-m", model, "-f", tmp_path), 2, "folder")
    before, few = model.read_bytes(), ["-c", 64, "--chunks", 1]
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, *few, "-o", model), 2, "also the input")
    failed(liquid("imatrix", "-m", model, "-f", text, *few, "-o", text), 2, "also the input")
    failed(liquid("imatrix", "-m", model, "-f", random_models.TEXT, "-c", 0), 2, "at least 16 tokens, not 0")
    assert model.read_bytes() == before and text.read_text() == "no matrix"
    words = ["quantize", model, "Q8_0", "--allow-requantize", "--imatrix"]
    failed(liquid(*words, text), 6, "neither a GGUF file nor a whole importance matrix")
    failed(liquid(*words, model), 6, "is no importance matrix")
    assert not (tmp_path / "imatrix.gguf").exists()
