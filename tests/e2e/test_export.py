"""`liquid export` as it is typed: paths, streams, exit codes, Ctrl-C, and the way round to the same file."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from liquidcli import converters
from liquidcli.gguf_file import open_gguf
from tests.command import Liquid, failed
from tests.hf_folders import CONFIG, llama_tensors, write_llama


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    folder = write_llama(tmp_path / "src" / "Tiny", dtype="F16")
    return converters.run(converters.plan(folder, "f16"), tmp_path / "tiny.gguf").output


def test_there_and_back(liquid: Liquid, gguf: Path, tmp_path: Path) -> None:
    result = liquid("export", "tiny.gguf", "Tiny")
    assert result.returncode == 0 and result.stdout == "Tiny\n", result.stderr
    assert "LlamaForCausalLM, f16, " in result.stderr and "Traceback" not in result.stderr
    names = {path.name for path in (tmp_path / "Tiny").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert liquid("convert", "Tiny", "-o", "again.gguf", "-q").stdout == "again.gguf\n"
    with open_gguf(gguf) as f, open_gguf(tmp_path / "again.gguf") as g:
        assert [name for name in f.tensors if f.raw(name).tobytes() != g.raw(name).tobytes()] == []
        assert f.metadata == g.metadata  # even the name


def test_json(liquid: Liquid, gguf: Path, tmp_path: Path) -> None:
    told = json.loads(liquid("export", "tiny.gguf", "out", "--dtype", "bf16", "--json").stdout)
    assert told["input"] == "tiny.gguf" and told["output"] == "out" and told["architecture"] == "LlamaForCausalLM"
    weights = next(one for one in told["files"] if one["name"] == "model.safetensors")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert weights == {
        "name": "model.safetensors", "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()
    }  # fmt: skip
    assert {one["dtype"] for one in told["tensors"]} == {"BF16", "F32"} and len(told["tensors"]) == 21
    assert told["warnings"] == [] and told["seconds"] >= 0


def test_dry_run_writes_nothing_and_shows_every_tensor(liquid: Liquid, gguf: Path, tmp_path: Path) -> None:
    result = liquid("export", "tiny.gguf", "out", "--dry-run")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and lines[0].split() == ["TENSOR", "SHAPE", "TYPE", "FROM"] and len(lines) == 22
    told = json.loads(liquid("export", "tiny.gguf", "out", "--dry-run", "--json").stdout)
    assert told["dtype"] == "f16" and told["config"]["hidden_size"] == CONFIG["hidden_size"]
    assert not (tmp_path / "out").exists()
    liquid("export", "tiny.gguf", "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) == told["size_bytes"]


def test_shards(liquid: Liquid, gguf: Path, tmp_path: Path) -> None:
    assert liquid("export", "tiny.gguf", "out", "--max-shard-size", "30K", "-q").stdout == "out\n"
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert liquid("convert", "out", "-o", "again.gguf").returncode == 0


def test_refusals(liquid: Liquid, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    failed(liquid("export", "gone.gguf", "out"), 3, "gone.gguf")
    failed(liquid("export", "tiny.gguf", "full"), 2, "full is there already")
    failed(liquid("export", "tiny.gguf", "gone/out"), 3, "gone does not exist")
    failed(liquid("export", "tiny.gguf", "out", "--dtype", "q8_0"), 2, "f32, f16, bf16, auto")
    failed(liquid("export", "tiny.gguf", "out", "--max-shard-size", "many"), 2, "'many' is no size")
    failed(liquid("export", "tiny.gguf"), 2, "OUT_FOLDER")
    gguf.write_bytes(gguf.read_bytes()[:-100])
    failed(liquid("export", "tiny.gguf", "out"), 6, "truncated")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_export_leaves_nothing(liquid: Liquid, tmp_path: Path, how: signal.Signals) -> None:
    config = {"intermediate_size": 1 << 17, "num_hidden_layers": 12}
    weights = {name: np.zeros_like(one) for name, one in llama_tensors({**CONFIG, **config}).items()}
    folder = write_llama(tmp_path / "big", config, tensors=weights)
    converters.run(converters.plan(folder, "q8_0"), tmp_path / "big.gguf")
    process = liquid.start("export", "big.gguf", "out", "--dtype", "f32")
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size > 1 << 20 for part in tmp_path.glob(".out*.part/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + how and stdout == "" and "Traceback" not in stderr
    assert not list(tmp_path.glob("*out*"))
