"""`liquid show`: what is in a file, for people and scripts, and what a hostile file cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import gguf_bytes
from tests.command import Liquid, failed
from tests.gguf_bytes import ARRAY, BOOL, FLOAT32, STRING


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_HUB_OFFLINE": "1"})


def test_a_plain_model(liquid: Liquid) -> None:
    path = gguf_bytes.llama().write(liquid.home / "plain.gguf")
    told = json.loads(liquid("show", path, "--json").stdout)
    n_embd, n_kv, n_ff, vocab = 32, 16, 64, 16
    per_layer = 2 * n_embd + 2 * n_embd * n_embd + 2 * n_embd * n_kv + 3 * n_embd * n_ff
    assert told["parameters"] == n_embd * vocab + n_embd + 2 * per_layer
    assert (told["architecture"], told["size_bytes"]) == ("llama", path.stat().st_size)
    assert told["file_type"] == "F32" and told["depth"] is None and "tensors" not in told
    assert told["metadata"]["llama.block_count"] == 2
    shown = liquid("show", path).stdout
    assert "every layer runs" in shown and "llama" in shown


def test_gates_by_layer(liquid: Liquid) -> None:
    model = gguf_bytes.liquid(spans=(0, 1, 2, 0), kind="bottleneck")
    model.keys["liquid.depth.calibration.threshold"] = (ARRAY, (FLOAT32, [0.25, 0.5]))
    model.keys["liquid.depth.calibration.executed_fraction"] = (ARRAY, (FLOAT32, [1.0, 0.75]))
    path = model.write(liquid.home / "gated.gguf")
    depth = json.loads(liquid("show", path, "--json").stdout)["depth"]
    assert (depth["gate_kind"], depth["threshold"], depth["kv_policy"]) == ("bottleneck", 0.5, "project")
    assert depth["layers_total"] == 4
    assert [(g["layer"], g["span"], g["scope"], g["exit"], g["adapter_size"]) for g in depth["gates"]] == [
        (1, 1, "layer", False, 32),
        (2, 2, "layer", False, 32),
    ]
    assert depth["gates"][0]["size_bytes"] == 4 * (4 + 32 * 4 + 4)
    assert depth["calibration"][1] == {"threshold": 0.5, "executed_fraction": 0.75}
    shown = liquid("show", path).stdout
    assert "2 (bottleneck), at layers 1 2-3" in shown and "75%@0.50" in shown


def test_gates_over_halves_and_exits(liquid: Liquid) -> None:
    model = gguf_bytes.liquid(spans=(0, 1, 2, 1))
    model.keys["liquid.depth.gate_scope"] = gguf_bytes.strings("", "attn+ffn", "", "attn")
    model.keys["liquid.depth.gate_exit"] = (ARRAY, (BOOL, [False, False, True, False]))
    for name, seed in (("1.depth_gate_attn", 1), ("1.depth_gate_ffn", 2), ("3.depth_gate_attn", 3)):
        model.tensors[f"blk.{name}.weight"] = gguf_bytes.f32(32, seed=seed)
    for layer in (1, 3):
        del model.tensors[f"blk.{layer}.depth_gate.weight"]
    path = model.write(liquid.home / "gated.gguf")
    gates = json.loads(liquid("show", path, "--json").stdout)["depth"]["gates"]
    assert [(g["layer"], g["scope"], g["exit"], g["size_bytes"]) for g in gates] == [
        (1, "attn", False, 128), (1, "ffn", False, 128), (2, "layer", True, 128), (3, "attn", False, 128)
    ]  # fmt: skip
    assert "4 (linear), at layers 1:attn 1:ffn 2-3! 3:attn" in liquid("show", path).stdout


def test_tensors_and_single_keys(liquid: Liquid) -> None:
    model = gguf_bytes.liquid()
    model.keys["liquid.role.tensors"] = gguf_bytes.strings("blk.1.depth_gate.weight", "no.such.tensor")
    model.keys["liquid.role.names"] = gguf_bytes.strings("a role of its own", "none")
    path = model.write(liquid.home / "gated.gguf")
    tensors = {t["name"]: t for t in json.loads(liquid("show", path, "-v", "--json").stdout)["tensors"]}
    assert tensors["blk.1.depth_gate.weight"]["role"] == "a role of its own"
    assert tensors["blk.2.depth_gate.weight"]["role"] == "depth_gate"
    assert tensors["blk.0.ffn_down.weight"] == {
        "name": "blk.0.ffn_down.weight", "shape": [64, 32], "type": "F32", "role": "ffn_down", "size_bytes": 8192
    }  # fmt: skip
    assert "blk.0.ffn_down.weight" in liquid("show", path, "-v").stdout
    assert liquid("show", path, "--get", "general.architecture").stdout == "liquid\n"
    assert json.loads(liquid("show", path, "--get", "tokenizer.ggml.tokens").stdout)[3] == "t3"
    failed(liquid("show", path, "--get", "general.architectur"), 3, "general.architecture")


def test_a_hostile_file_cannot_steer_the_terminal(liquid: Liquid) -> None:
    model = gguf_bytes.llama()
    model.keys["general.name"] = (STRING, "\x1b]0;owned\x07\x1b[2Jname\u202e\nsecond line")
    model.keys["\x1b[31mkey"] = (STRING, "\x9b31m" + "x" * 500)
    model.keys["general.flag"] = (BOOL, True)
    path = model.write(liquid.home / "hostile.gguf")
    for arguments in (["-v"], ["--json", "-v"], ["--get", "general.name"]):
        shown = liquid("show", path, *arguments).stdout
        assert not any(char in shown for char in "\x1b\x9b\u202e\x07"), arguments
    code, shown = liquid.on_terminal("show", path, "-v", NO_COLOR="1")
    assert code == 0 and "\x1b" not in shown
    assert max(len(line) for line in shown.splitlines() if not line.startswith("file ")) <= 80


@pytest.mark.parametrize(("content", "code"), [(b"", 6), (b"PK\x03\x04", 6), (b"GGUF\x03\0\0\0", 6), (None, 3)])
def test_what_is_no_model(liquid: Liquid, content: bytes | None, code: int) -> None:
    path = liquid.home / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    failed(liquid("show", path), code, "broken.gguf")


def test_a_folder_and_an_unknown_name(liquid: Liquid) -> None:
    (liquid.home / "folder").mkdir()
    failed(liquid("show", liquid.home / "folder"), 2, "is a folder")
    failed(liquid("show", "owner/unknown"), 3, "liquid pull owner/unknown")
    failed(liquid("show"), 3, "liquid pull")
