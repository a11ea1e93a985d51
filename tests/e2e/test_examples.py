"""The scripts in examples/ run as their first lines say, here on tiny models."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import random_models
from tests.tiny import make_model, save_checkpoint
from tests.tiny_gguf import write_gguf

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"


def example(name: str, *args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def lines(result: subprocess.CompletedProcess) -> list[str]:
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    write_gguf(make_model("linear"), tmp_path / "chat.gguf", chat_template=TEMPLATE)
    return tmp_path / "chat.gguf"


def test_chat_with_depth_trace(chat_model):
    said = lines(example("chat_with_depth_trace.py", "--model", chat_model, "--max-tokens", 6, "hello"))
    rows = [match for line in said if (match := re.search(r"(\d+) of 6  ([#.]{6})$", line))]
    assert rows and all(row[2].count("#") == int(row[1]) for row in rows)
    assert any("." in row[2] for row in rows)
    assert re.fullmatch(r"\d\.\d\d of 6 layers per token, prompt included", said[-1])
    full = lines(example("chat_with_depth_trace.py", "--model", chat_model, "--depth", "full", "--max-tokens", 3, "hi"))
    assert full[-1].startswith("6.00 of 6")


def test_make_and_apply_gate_pack(tmp_path):
    base = random_models.stock(tmp_path)
    args = ("--base", base, "--ctx-size", 64, "--skip", 0.5, "--out", tmp_path / "gated.gguf")
    said = lines(example("make_and_apply_gate_pack.py", *args))
    assert said[0].startswith("gates at layers 4 to 6 of 8") and (tmp_path / "gated.gguf").exists()
    shares = [float(re.search(r"([\d.]+)% of the layers", line)[1]) for line in said[1:]]
    assert shares[0] == 100.0 and 75 < shares[1] < 90 and shares[2] < shares[1]


def test_convert_quantize_measure(tmp_path):
    checkpoint = save_checkpoint(make_model("linear-adapter"), tmp_path / "tiny")
    args = (checkpoint, "--types", "Q8_0", "Q4_0", "--text", random_models.TEXT, "--ctx-size", 64, "--chunks", 2)
    head, *rows = lines(example("convert_quantize_measure.py", *args))
    assert head.split()[:3] == ["file", "MB", "PPL"]
    assert [row.split()[0] for row in rows] == ["tiny-F16.gguf", "tiny-Q8_0.gguf", "tiny-Q4_0.gguf"]
    divergence = [float(row.split()[4]) for row in rows]
    assert divergence[0] == 0.0 < divergence[1] < divergence[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("chat_with_depth_trace.py", ("--model", "nothing.gguf", "hello")),
        ("make_and_apply_gate_pack.py", ("--base", "nothing.gguf")),
        ("convert_quantize_measure.py", ("nothing",)),
    ],
)
def test_a_missing_model_is_one_sentence(name, args):
    result = example(name, *args)
    assert result.returncode == 3 and result.stdout == "" and result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
