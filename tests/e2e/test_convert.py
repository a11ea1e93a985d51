"""`liquid convert` as it is typed: paths, streams, exit codes, Ctrl-C, a repository on the hub."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from pathlib import Path

import pytest

from liquidcli.gguf_file import open_gguf
from tests.command import Liquid, failed
from tests.fake_hub import FakeHub, serve
from tests.hf_dense import make_config, write_dense
from tests.hf_folders import CONFIG, llama_tensors, write_json, write_llama


@pytest.fixture
def liquid(tmp_path: Path) -> Liquid:
    return Liquid(tmp_path, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})


def nothing_written(folder: Path) -> bool:
    return not [*folder.rglob("*.gguf"), *folder.rglob("*.part")]


def test_the_default_output_lies_beside_the_folder(liquid: Liquid, tmp_path: Path) -> None:
    write_llama(tmp_path / "models" / "Tiny", dtype="BF16")
    result = liquid("convert", "models/Tiny")
    path = tmp_path / "models" / "Tiny-BF16.gguf"
    assert result.returncode == 0 and result.stdout == f"{path}\n"
    assert "sha256" in result.stderr and "Traceback" not in result.stderr
    with open_gguf(path) as f:
        assert f.architecture == "llama" and f.metadata["general.name"] == "Tiny"


def test_inside_the_folder_its_name_is_still_found(liquid: Liquid, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "Tiny")
    result = liquid("convert", ".", "--outtype", "f16", "-q", cwd=folder)
    assert result.stdout == f"{tmp_path / 'Tiny-F16.gguf'}\n" and result.stderr == ""


def test_json(liquid: Liquid, tmp_path: Path) -> None:
    write_llama(tmp_path / "Tiny", {"logit_cap": 3.0})
    result = liquid("convert", "Tiny", "--outfile", "out.gguf", "--outtype", "q8_0", "--json")
    told = json.loads(result.stdout)
    data = (tmp_path / "out.gguf").read_bytes()
    assert told["input"] == "Tiny" and told["output"] == "out.gguf" and told["size_bytes"] == len(data)
    assert told["sha256"] == hashlib.sha256(data).hexdigest() and told["seconds"] >= 0
    assert {one["type"] for one in told["tensors"]} == {"Q8_0", "F32"} and len(told["tensors"]) == 21
    assert "logit_cap" in told["warnings"][0] and "warning: " in result.stderr


def test_dry_run_writes_nothing_and_shows_every_tensor(liquid: Liquid, tmp_path: Path) -> None:
    write_llama(tmp_path / "Tiny")
    result = liquid("convert", "Tiny", "--dry-run", "--outtype", "f16")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and lines[0].split() == ["TENSOR", "SHAPE", "TYPE", "FROM"] and len(lines) == 22
    row = ["blk.1.ffn_down.weight", "64x32", "F16", "model.layers.1.mlp.down_proj.weight"]
    assert row in [line.split() for line in lines]
    told = json.loads(liquid("convert", "Tiny", "--dry-run", "--json", "--outtype", "f16").stdout)
    assert told["size_bytes"] > 0 and told["architecture"] == "llama" and told["output"].endswith("Tiny-F16.gguf")
    assert nothing_written(tmp_path)
    assert liquid("convert", "Tiny", "--outtype", "f16", "-o", "x.gguf").returncode == 0
    assert (tmp_path / "x.gguf").stat().st_size == told["size_bytes"]


def test_refusals(liquid: Liquid, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "Tiny")
    (tmp_path / "empty").mkdir()
    failed(liquid("convert", "gone"), 3, "gone does not exist")
    failed(liquid("convert", "empty"), 3, "config.json")
    failed(liquid("convert", "Tiny/model.safetensors"), 2, "is a file", "liquid convert Tiny")
    failed(liquid("convert", "Tiny", "--outtype", "q4_k_m"), 2, "f32, f16, bf16, q8_0, auto")
    failed(liquid("convert", "Tiny", "-o", "gone/x.gguf"), 3, "gone does not exist")
    failed(liquid("convert", "Tiny", "-o", "empty"), 2, "is a folder, a file name was expected")
    failed(liquid("convert", "Tiny", "-o", "Tiny/model.safetensors"), 2, "one of the files that are converted")
    failed(liquid("convert"), 2, "SRC")
    write_json(folder / "config.json", {**CONFIG, "architectures": ["Nope"]})
    failed(liquid("convert", "Tiny"), 1, "'Nope' is not known here")
    (folder / "model.safetensors").write_bytes(b"garbage garbage garbage")
    failed(liquid("convert", "Tiny"), 6, "model.safetensors")
    assert nothing_written(tmp_path)


def test_the_old_file_stays_when_the_new_one_fails(liquid: Liquid, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "Tiny")
    (tmp_path / "x.gguf").write_bytes(b"old")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"  # not a number, in the last tensor
    (folder / "model.safetensors").write_bytes(data)
    failed(liquid("convert", "Tiny", "-o", "x.gguf"), 6, "not finite")
    assert (tmp_path / "x.gguf").read_bytes() == b"old" and not list(tmp_path.glob("*.part"))


def test_exit_layers_are_noted_and_shown(liquid: Liquid, tmp_path: Path) -> None:
    write_llama(tmp_path / "Tiny", {"num_hidden_layers": 6})
    assert liquid("convert", "Tiny", "--exit-layers", "4,2", "-o", "x.gguf", "-q").returncode == 0
    assert "exit layers" in liquid("show", "x.gguf").stdout
    assert json.loads(liquid("show", "x.gguf", "--json").stdout)["exit_layers"] == [2, 4]
    failed(liquid("convert", "Tiny", "--exit-layers", "9"), 2, "1 to 5 were expected")
    failed(liquid("convert", "Tiny", "--exit-layers", "two"), 2, "numbers with commas")


def test_several_files(liquid: Liquid, tmp_path: Path) -> None:
    write_llama(tmp_path / "Tiny")
    result = liquid("convert", "Tiny", "--split-max-size", "30K", "--outtype", "f16", "-o", "x.gguf")
    paths = result.stdout.split()
    assert result.returncode == 0 and len(paths) > 1 and paths[0] == f"x-00001-of-{len(paths):05}.gguf"
    with open_gguf(tmp_path / paths[0]) as f:
        assert len(f.tensors) == 21
    told = json.loads(liquid("convert", "Tiny", "--split-max-size", "30K", "-o", "y.gguf", "--json").stdout)
    assert [Path(one["path"]).name[1:] for one in told["files"]] == [path[1:] for path in paths]
    assert told["files"][0]["sha256"] == told["sha256"]
    assert sum(one["size_bytes"] for one in told["files"]) == told["size_bytes"]
    planned = json.loads(liquid("convert", "Tiny", "--split-max-size", "30K", "--dry-run", "--json").stdout)
    assert len(planned["file_bytes"]) == len(paths)
    failed(liquid("convert", "Tiny", "--split-max-size", "much"), 2, "is no size")


def test_the_list_of_architectures(liquid: Liquid) -> None:
    result = liquid("convert", "--list")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert any(line.startswith("DDLlamaForCausalLM ") and "`liquid`" in line for line in lines)
    told = json.loads(liquid("convert", "--list", "--json").stdout)
    assert {one["architecture"] for one in told} >= {"LlamaForCausalLM", "DDQwen3ForCausalLM", "LiquidForCausalLM"}
    assert all(one["family"] and one["summary"] for one in told) and len(told) == len(lines) - 1


def test_stock_is_written_for_other_programs(liquid: Liquid, tmp_path: Path) -> None:
    write_dense(tmp_path / "Windowed", make_config("mistral", sliding_window=16))
    own = liquid("convert", "Windowed", "-o", "own.gguf")
    assert own.returncode == 0 and "becomes architecture `liquid`" in own.stderr and "--stock" in own.stderr
    result = liquid("convert", "Windowed", "-o", "stock.gguf", "--stock", "--json")
    told = json.loads(result.stdout)
    assert told["stock"] is True and "has no attention windows" in told["warnings"][0]
    assert "warning: becomes architecture `llama` and computes something else" in result.stderr
    with open_gguf(tmp_path / "own.gguf") as f, open_gguf(tmp_path / "stock.gguf") as g:
        assert (f.architecture, g.architecture) == ("liquid", "llama") and list(f.tensors) == list(g.tensors)
    planned = json.loads(liquid("convert", "Windowed", "--dry-run", "--json").stdout)
    assert planned["stock"] is False and planned["architecture"] == "liquid"


def test_stock_that_could_not_load_is_refused(liquid: Liquid, tmp_path: Path) -> None:
    write_dense(tmp_path / "Biased", make_config("qwen3", attention_bias=True))
    why = "llama.cpp's `qwen3` cannot load this model: it has no bias on the attention's output"
    failed(liquid("convert", "Biased", "--stock"), 1, why, "leave out --stock")
    assert nothing_written(tmp_path)


def write_big(folder: Path) -> Path:
    """Half a gigabyte of zeros that take no room on the disk."""
    config = {**CONFIG, "intermediate_size": 1 << 20}
    header, end = {}, 0
    for name, shape in shapes_of(config).items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    write_llama(folder)
    write_json(folder / "config.json", config)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def shapes_of(config: dict) -> dict[str, tuple[int, ...]]:
    small, large = CONFIG["intermediate_size"], config["intermediate_size"]
    shapes = {name: values.shape for name, values in llama_tensors().items()}
    return {
        name: tuple(large if ".mlp." in name and size == small else size for size in shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("split", [(), ("--split-max-size", "60M")], ids=["one file", "several"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_conversion_leaves_nothing(
    liquid: Liquid, tmp_path: Path, how: signal.Signals, split: tuple[str, ...]
) -> None:
    write_big(tmp_path / "Big")
    process = liquid.start("convert", "Big", "--outtype", "q8_0", "-o", "big.gguf", *split)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size > 1 << 20 for part in tmp_path.glob(".big*.part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + how and stdout == "" and "Traceback" not in stderr
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.part"))


def test_a_repository_on_the_hub(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "src", dtype="F16", n_shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serve(FakeHub({"someone/Tiny-1M": {**files, "pytorch_model.bin": b"pickle"}})) as hub:
        liquid = Liquid(tmp_path, {"HF_ENDPOINT": hub.url})
        failed(liquid("convert", "someone/Tiny-1M", "--dry-run"), 2, "--dry-run needs a folder")
        result = liquid("convert", "someone/Tiny-1M", "-q")
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{tmp_path / 'Tiny-1M-F16.gguf'}\n"
    with open_gguf(tmp_path / "Tiny-1M-F16.gguf") as f:
        assert f.metadata["general.name"] == "Tiny 1M" and len(f.tensors) == 21
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin"))
