"""`liquid gates` as a user types it."""

from __future__ import annotations

import json
import signal

import pytest

from tests.command import Liquid, failed
from tests.gate_packs import write_base, write_tiny_pack
from tests.gguf_bytes import f32, llama


@pytest.fixture
def liquid(tmp_path):
    return Liquid(tmp_path, {})


@pytest.fixture
def base(tmp_path):
    return write_base(tmp_path / "base.gguf")


@pytest.fixture
def pack(tmp_path, base):
    return write_tiny_pack(tmp_path / "pack.gguf", base)


def test_apply_prints_the_path_and_show_lists_the_gates(liquid, tmp_path, base, pack):
    done = liquid("gates", "apply", base, pack, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "out.gguf"), done.stderr
    for file, kind in ((pack, "pack"), (tmp_path / "out.gguf", "model")):
        told = json.loads(liquid("gates", "show", file, "--json").stdout)
        assert told["type"] == kind and [gate["layer"] for gate in told["gates"]] == [1, 2]
    shown = liquid("gates", "show", tmp_path / "out.gguf").stdout
    assert "2 linear, 4 layers" in shown and "0.750" in shown


def test_a_pack_for_another_base_is_one_sentence_and_exit_code_6(liquid, tmp_path, pack):
    tuned = llama(4)
    tuned.tensors["output_norm.weight"] = f32(32, seed=77)
    other = tuned.write(tmp_path / "tuned.gguf")
    failed(liquid("gates", "apply", other, pack, "-o", tmp_path / "out.gguf"), 6, "fine-tune")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(("words", "code", "said"), [
    (("apply", "none.gguf", "pack.gguf", "-o", "out.gguf"), 3, "none.gguf"),
    (("apply", "base.gguf", "base.gguf", "-o", "out.gguf"), 6, "a gate pack was expected"),
    (("apply", "base.gguf", "pack.gguf", "-o", "."), 2, "folder"),
    (("apply", "base.gguf", "cut.gguf", "-o", "out.gguf"), 6, "cut.gguf"),
    (("show", "base.gguf"), 3, "no depth gates"),
    (("train", "base.gguf", "-o", "p.gguf", "--target", "75"), 2, "a share like 75%"),
    (("train", "base.gguf", "-o", "p.gguf", "--layers", "9-4"), 2, "--layers"),
    (("train", "base.gguf", "-o", "p.gguf", "--kv", "keep"), 2, "--kv"),
    (("train", "base.gguf", "-o", "p.gguf", "--data", "none.txt"), 3, "none.txt"),
], ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else None)  # fmt: skip
def test_failures_are_one_sentence(liquid, tmp_path, pack, words, code, said):
    (tmp_path / "cut.gguf").write_bytes(pack.read_bytes()[:-700])
    failed(liquid("gates", *words), code, said)
    assert not (tmp_path / "out.gguf").exists() and not list(tmp_path.glob("*.part"))


def test_training_tells_its_progress_and_writes_pack_and_report(liquid, tmp_path, base):
    rows = [{"tokens": [(i * j) % 16 for i in range(40)]} for j in range(1, 30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "gates",
        "train",
        base,
        "-o",
        tmp_path / "p.gguf",
        "--data",
        "rows.jsonl",
        "--target",
        "80%",
        "--n-gates",
        "1",
        "--layers",
        "1-2",
        "--adapter-size",
        "32",
        "--harvest-tokens",
        "600",
        "--epochs",
        "1",
        "--tune-tokens",
        "1",
        "-t",
        "1",
    ]
    done = liquid(*words, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["target"] == 0.8 and (tmp_path / "p.gguf.json").exists()
    assert "pricing layers" in done.stderr and "end to end" in done.stderr
    failed(liquid(*words), 2, "--resume")
    again = liquid(*words, "--resume")
    assert again.returncode == 0 and "pricing layers" not in again.stderr and "calibrating" in again.stderr


def test_train_writes_a_pack_its_report_and_goes_on_with_resume(liquid, tmp_path, base):
    rows = [{"tokens": [(7 * i + j * j) % 16 for j in range(40)]} for i in range(24)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (
        "gates", "train", base, "-o", "p.gguf", "--data", "a.jsonl", "--layers", "1-2", "--n-gates", "3",
        "--scope", "attn+ffn", "--kv", "drop", "--rank", "2", "--target", "80%", "--adapter-size", "32",
        "--harvest-tokens", "200", "--epochs", "2", "--tune-tokens", "1024", "-t", "1", "--device", "cpu",
    )  # fmt: skip
    failed(liquid(*words, "--n-gates", "5"), 2, "at most 4")
    done = liquid(*words, "--resume")
    assert done.returncode == 0 and "pack" in done.stdout and "80" in done.stdout, done.stderr
    assert "end to end" in done.stderr and "calibrating" in done.stderr and "nothing to resume" in done.stderr
    told = json.loads(liquid("gates", "show", "p.gguf", "--json").stdout)
    assert len(told["gates"]) == 3 and {gate["scope"] for gate in told["gates"]} <= {"attn", "ffn"}
    assert told["depth"]["kv_policy"] == "drop" and told["updates"]["rank"] == 2 and told["updates"]["matrices"] >= 5
    assert "rank 2, merged" in liquid("gates", "show", "p.gguf").stdout
    report = json.loads((tmp_path / "p.gguf.json").read_text())
    assert report["options"]["rank"] == 2 and len(report["places"]) == 3 and len(report["curve"]) == 2
    failed(liquid(*words), 2, "--resume goes on")
    failed(liquid(*words, "--resume", "--seed", "9"), 2, "begun with --seed 1")
    again = liquid(*words, "--resume")
    assert again.returncode == 0 and "pricing layers" not in again.stderr and "calibrating" in again.stderr
    assert "nothing to resume" not in again.stderr
    (tmp_path / "p.gguf.state" / "options.json").unlink()
    failed(liquid(*words, "--resume"), 6, "options.json is missing")
    applied = json.loads(liquid("gates", "apply", base, "p.gguf", "-o", "out.gguf", "--json").stdout)
    assert len(applied["merged"]) == told["updates"]["matrices"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_how_it_goes_on(liquid, tmp_path, base, number, code):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"tokens": [i % 16] * 20 + [3] * 20}) for i in range(24)))
    words = ("gates", "train", base, "-o", "p.gguf", "--data", "a.jsonl", "--layers", "1-2", "--adapter-size", "32",
             "--harvest-tokens", "1000000", "-t", "1")  # fmt: skip
    process = liquid.start(*words)
    first = process.stderr.readline()
    process.send_signal(number)
    rest = process.stderr.read()
    assert "pricing layers" in first and process.wait(60) == code
    assert "--resume goes on" in rest and "Traceback" not in rest and not (tmp_path / "p.gguf").exists()
