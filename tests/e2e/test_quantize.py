"""`liquid quantize` as a user types it."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from liquidcli.gguf_file import open_gguf
from liquidcli.quant import write_imatrix
from tests import random_models
from tests.command import Liquid, failed
from tests.quant_models import Shape, make


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_HUB_OFFLINE": "1"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make(Shape(n_layer=2)).write(tmp_path / "noise-f16.gguf")


def test_in_and_type(liquid, model):
    result = liquid("quantize", model, "q4_k_m")
    made = model.with_name("noise-Q4_K_M.gguf")
    assert (result.returncode, result.stdout) == (0, f"{made}\n")
    assert "bits per weight" in result.stderr
    with open_gguf(made) as f:
        assert f.metadata["general.file_type"] == 15


def test_in_out_type_and_threads_as_json(liquid, model, tmp_path):
    told = json.loads(liquid("quantize", model, tmp_path / "out.gguf", 7, 2, "--json").stdout)
    content = (tmp_path / "out.gguf").read_bytes()
    assert told["sha256"] == hashlib.sha256(content).hexdigest() and told["size_bytes"] == len(content)
    assert told["input"] == str(model) and told["output"] == str(tmp_path / "out.gguf") and told["seconds"] >= 0
    assert {"name", "shape", "type", "source_type", "size_bytes", "reason"} <= set(told["tensors"][0])


def test_dry_run_writes_nothing(liquid, model, tmp_path):
    result = liquid("quantize", model, "Q4_K_M", "--dry-run")
    assert "blk.*.ffn_norm     F32" in result.stdout and "would have" in result.stderr
    told = json.loads(liquid("quantize", model, "Q4_K_M", "--dry-run", "--json").stdout)
    assert told["sha256"] is None and sorted(p.name for p in tmp_path.glob("*.gguf")) == ["noise-f16.gguf"]
    liquid("quantize", model, "Q4_K_M")
    assert model.with_name("noise-Q4_K_M.gguf").stat().st_size == told["size_bytes"]


def test_sizes_of_every_type(liquid, model, tmp_path):
    told = json.loads(liquid("quantize", model, "--all", "--dry-run", "--json").stdout)
    assert {row["type"] for row in told[:3]} == {"IQ1_S", "Q1_0", "TQ1_0"}
    assert told[0]["size_bytes"] < told[-1]["size_bytes"]
    assert {row["type"] for row in told if row["needs_imatrix"]} == {
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"
    }  # fmt: skip
    assert all(row["fits"] and row["memory_bytes"] > row["size_bytes"] and row["n_ctx"] == 128 for row in told)
    lines = liquid("quantize", model, "--all").stdout.splitlines()
    assert lines[0].split() == ["TYPE", "SIZE", "BITS/WEIGHT", "MEMORY", "FITS", "USE"] and len(lines) == len(told) + 1
    failed(liquid("quantize", model, tmp_path / "o.gguf", "--all"), 2, "only lists sizes")


def test_the_largest_that_fits(liquid, model):
    told = json.loads(liquid("quantize", model, "--all", "--dry-run", "--json").stdout)
    sizes = {plan["type"]: plan["size_bytes"] for plan in told}
    result = liquid("quantize", model, "--fit", sizes["Q6_K"] + 10, "--json")
    told = json.loads(result.stdout)
    assert told["type"] == "Q6_K" and told["size_bytes"] == sizes["Q6_K"] and "Q8_0, the next" in told["chosen"]
    assert f"Q6_K needs {told['size_bytes'] / 1e3:.1f} kB, the budget is {sizes['Q6_K'] + 10} (" in told["chosen"]
    assert "copy" not in told["chosen"]
    ample = liquid("quantize", model, "--fit", "auto", "--dry-run").stderr
    assert "the next" not in ample and "noise-f16.gguf has that type already" in ample
    failed(liquid("quantize", model, "--fit", "1K"), 5, "the smallest type")
    failed(liquid("quantize", model, "Q4_0", "--fit", "1G"), 2, "is a type")
    tight = sizes["IQ2_XS"] + 10
    failed(liquid("quantize", model, "--fit", tight), 5, "Q2_K, the smallest type", "--imatrix FILE, IQ2_XS would do")


def test_bits_per_weight_choose(liquid, model):
    told = json.loads(liquid("quantize", model, "--target-bpw", "4.9", "--dry-run", "--json").stdout)
    assert told["bits_per_weight"] <= 4.9 and told["type"] in told["chosen"] and "would take" in told["chosen"]
    failed(liquid("quantize", model, "--target-bpw", "1"), 1, "at most 1 were asked for")
    failed(liquid("quantize", model, "--target-bpw", "-3"), 2, "cannot be")
    failed(liquid("quantize", model, "--target-bpw", "4", "--fit", "1G"), 2, "both choose")


def test_dry_run_of_every_tensor(liquid, model):
    lines = liquid("quantize", model, "Q4_K_M", "--dry-run", "-v").stdout.splitlines()
    assert lines[0].split() == ["TENSOR", "SHAPE", "FROM", "TO", "SIZE", "WHY"] and len(lines) == 1 + 3 + 2 * 9
    assert ["blk.0.attn_q.weight", "256x256", "F16", "Q4_K"] in [line.split()[:4] for line in lines]
    result = liquid("quantize", model, "IQ2_XXS", "--dry-run")
    assert result.returncode == 0 and "need --imatrix FILE" in result.stderr


def test_types_of_a_file_and_keys(liquid, model, tmp_path):
    (tmp_path / "types").write_text("attn_v=q8_0\nffn=f16 output=q5_0\n")
    words = ["--tensor-type-file", tmp_path / "types", "--override-kv", "general.name=str:other"]
    told = json.loads(liquid("quantize", model, tmp_path / "o.gguf", "Q4_0", *words, "--json").stdout)
    types = {t["name"]: t["type"] for t in told["tensors"]}
    assert types["blk.0.attn_v.weight"] == "Q8_0" and types["blk.1.ffn_up.weight"] == "F16"
    with open_gguf(tmp_path / "o.gguf") as f:
        assert f.metadata["general.name"] == "other"


def test_overrides(liquid, model, tmp_path):
    words = ["--tensor-type", "attn_v=q8_0", "--tensor-type", "ffn=f16", "--output-tensor-type", "q5_0"]
    told = json.loads(liquid("quantize", model, tmp_path / "o.gguf", "Q4_0", *words, "--json").stdout)
    types = {t["name"]: t["type"] for t in told["tensors"]}
    assert types["blk.0.attn_v.weight"] == "Q8_0" and types["blk.1.ffn_up.weight"] == "F16"
    assert types["output.weight"] == "Q5_0" and types["blk.0.attn_q.weight"] == "Q4_0"


def test_quiet_says_only_the_path(liquid, model):
    result = liquid("quantize", model, "Q4_0", "--quiet")
    assert result.stderr == "" and result.stdout.endswith("noise-Q4_0.gguf\n")


def test_wrong_words(liquid, model, tmp_path):
    failed(liquid("quantize", model), 2, "a type was expected")
    failed(liquid("quantize", model, "q99"), 2, "'q99' is no quantization type", "Q4_K_M")
    failed(liquid("quantize", model, tmp_path / "o.gguf", "q99"), 2, "no quantization type")
    failed(liquid("quantize", "-q", "Q4_0", model), 2, "-q is not used here", "liquid quantize IN")
    failed(liquid("quantize", "Q4_0", model), 2, "IN comes first", "liquid quantize IN")
    failed(liquid("quantize", model, "-o", "o.gguf", "Q4_0"), 2, "OUT and TYPE are words", "liquid quantize IN [OUT]")
    failed(liquid("quantize", model, "--quantize", "Q4_0"), 2, "OUT and TYPE are words", "liquid quantize IN [OUT]")
    failed(liquid("quantize", model, "/proc/x.gguf", "Q4_0"), 1, "cannot write in /proc", "hint: name another folder")
    failed(liquid("quantize", model, model, "Q4_0"), 2, "is also the input")
    failed(liquid("quantize", model, "Q4_0", "many"), 2, "no number of threads")
    failed(liquid("quantize", tmp_path / "none.gguf", "Q4_0"), 3)
    failed(liquid("quantize", model, "Q4_0", "--tensor-type", "atn_q=q8_0"), 2, "'atn_q' matches none of the 21")
    failed(liquid("quantize", model, "Q4_0", "--tensor-type-file", tmp_path / "none"), 3, "no file")
    failed(liquid("quantize", model, "Q4_0", "--override-kv", "a=int:x"), 2, "no int value of a")
    failed(liquid("quantize", model, "Q4_0", "--override-kv", "a=float:1e300"), 2, "no float value of a")
    for word in ("general.alignment=int:64", "split.count=int:3"):
        failed(liquid("quantize", model, "Q4_0", "--override-kv", word), 2, "where the tensors lie")
    failed(liquid("quantize", model, "IQ2_XXS"), 2, "garbage without an importance matrix", "liquid imatrix")
    failed(liquid("quantize", tmp_path, "Q4_0"), 2, "is a folder")


def test_broken_input(liquid, model, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-100])
    failed(liquid("quantize", cut, "Q4_0"), 6, "is truncated")
    cut.write_text("not a model, far from it")
    failed(liquid("quantize", cut, "Q4_0"), 6, "is no GGUF file")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["cut.gguf", "noise-f16.gguf"]


def test_interrupt(liquid, tmp_path):
    model = make(Shape(n_layer=24, n_ff=1024), seed=None).write(tmp_path / "big-f16.gguf")
    process = liquid.start("quantize", model, "Q4_K_M", 1)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*.part")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["big-f16.gguf"]


def test_what_fit_chooses_stays_within_the_budget_when_it_runs(liquid, tmp_path):
    """Peak memory of the whole process, its context filled; also of types that are held in memory twice."""
    shape = replace(random_models.SHAPES["tiny"], n_embd=512, n_ff=2048, n_head=8)
    source = random_models.write_model(
        tmp_path / "source.gguf", shape, body=GGMLQuantizationType.F16, head=GGMLQuantizationType.F16
    )
    words = [source, "-c", 256]
    told = {row["type"]: row for row in json.loads(liquid("quantize", *words, "--all", "--json").stdout)}
    for kind in ("Q2_K", "IQ4_NL", "Q4_0", "Q4_K_M", "Q6_K", "Q8_0"):
        budget = told[kind]["memory_bytes"]
        made = json.loads(liquid("quantize", *words, tmp_path / f"{kind}.gguf", "--fit", budget, "--json").stdout)
        assert told[made["type"]]["memory_bytes"] <= budget
        bench = ["bench", "-m", made["output"], "-p", 240, "-n", 16, "-r", 1, "-t", 1, "--random", "--json"]
        peaks = [row["peak_rss_bytes"] for row in json.loads(liquid(*bench).stdout)]
        assert max(peaks) <= budget, (kind, made["type"])


def test_words_that_cannot_be_meant(liquid, model, tmp_path):
    failed(liquid("quantize", model, "Q4_K_X"), 2, "'Q4_K_X' is no quantization type", "did you mean Q4_K_")
    failed(liquid("quantize", model, "out.gguf"), 2, "a type was expected after out.gguf")
    failed(liquid("quantize", model, "Q4_0", "--tensor-type-file", tmp_path), 2, "is a folder", "hint: ")
    failed(liquid("quantize", model, "Q4_0", "--tensor-type-file", "none"), 3, "hint: ")
    failed(liquid("quantize", model, "Q4_0", "--imatrix", tmp_path), 2, "is a folder", "liquid imatrix -m")
    failed(liquid("quantize", model, "Q4_0", "--imatrix", "none"), 3, "liquid imatrix -m")
    failed(liquid("quantize", model, "Q4_0", "--imatrix", model), 6, "is no importance matrix", "liquid imatrix -m")
    failed(liquid("quantize", model, "Q4_0", "--include-weights", "ffn"), 2, "add --imatrix FILE")
    both = ["--include-weights", "ffn", "--exclude-weights", "attn", "--imatrix", "none"]
    failed(liquid("quantize", model, "Q4_0", *both), 2, "exclude each other")
    failed(liquid("quantize", model, "--fit", "1K"), 5, "--all lists every type")


def test_importance_of_some_names(liquid, model, tmp_path):
    with open_gguf(model) as f:
        widths = {name: info.shape[0] for name, info in f.tensors.items() if name.startswith("blk.0.ffn_")}
    entries = {
        name: (np.ones((1, n), np.float32), np.ones(1, np.int64)) for name, n in widths.items() if "norm" not in name
    }
    write_imatrix(tmp_path / "i.gguf", entries, datasets=["text"], n_chunks=1, chunk_tokens=64)
    words = [model, "Q4_0", "--imatrix", "i.gguf"]
    failed(
        liquid("quantize", *words, "--include-weights", "attn"), 2, "'attn' is part of none of the 3 names", "blk.0.ffn"
    )
    assert liquid("quantize", *words, "--exclude-weights", "ffn_down").returncode == 0
    with open_gguf(tmp_path / "noise-Q4_0.gguf") as f:
        assert f.metadata["quantize.imatrix.entries_count"] == 2
    failed(liquid("quantize", model, "i.gguf", *words[1:]), 2, "i.gguf is also the input")


def test_a_limit_on_the_length_of_files(liquid, model, tmp_path):
    line = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *liquid.command("quantize", model, "o.gguf", "Q8_0")]
    done = subprocess.run(line, env=liquid.environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    failed(done, 7, "o.gguf may not become", "ulimit -f")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [model.name]
