"""`liquid run` as a user types it: text on stdout alone, JSON as promised, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests import random_models
from tests.command import Liquid, failed
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)
FIXED = ("-t", "1", "--temp", "0", "--ignore-eos", "-n", "6")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_gguf(make_model("linear"), folder / "chat.gguf", chat_template=TEMPLATE)
    write_gguf(make_model("moe"), folder / "plain.gguf")
    return folder


def test_an_argument_is_answered_on_stdout_alone(liquid: Liquid, models: Path) -> None:
    result = liquid("run", "-m", models / "chat.gguf", "hello", *FIXED)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("\n") and result.stdout.strip()


def test_json_is_the_contract(liquid: Liquid, models: Path) -> None:
    result = liquid("run", models / "chat.gguf", "hello", "--json", *FIXED)
    told = json.loads(result.stdout)
    assert told["usage"]["completion_tokens"] == 6 and told["finish_reason"] == "length"
    depth = told["depth"]
    assert depth["mode"] == "auto" and depth["layers_total"] == 6
    assert 0 < depth["executed_fraction"] < 1
    assert depth["layers_run_mean"] == pytest.approx(6 * depth["executed_fraction"], abs=1e-3)
    assert told["timings"]["prompt_ms"] > 0 and told["timings"]["predicted_ms"] > 0
    again = json.loads(liquid("run", models / "chat.gguf", "hello", "--json", *FIXED).stdout)
    assert again["text"] == told["text"]


def test_full_depth_is_exactly_one_and_mixtures_tell_their_experts(liquid: Liquid, models: Path) -> None:
    result = liquid("run", "-m", models / "plain.gguf", "-p", "the river", "--depth", "full", "--json", *FIXED)
    depth = json.loads(result.stdout)["depth"]
    assert depth["executed_fraction"] == 1 and depth["mode"] == "full"
    assert depth["experts"] == {"per_layer": 6, "used_mean": 2.0}


def test_the_prompt_is_argument_file_and_standard_input_together(liquid: Liquid, models: Path) -> None:
    (liquid.home / "text").write_text("from a file")

    def n_prompt(*args: object, stdin: str = "") -> int:
        result = liquid("run", "-m", models / "plain.gguf", *args, "-n", "1", "--json", stdin=stdin)
        return json.loads(result.stdout)["usage"]["prompt_tokens"]

    alone, both, all_ = n_prompt("ab"), n_prompt("ab", stdin="cd"), n_prompt("ab", "-f", "text", stdin="cd")
    assert alone < both < all_
    assert n_prompt("-f", "text") == n_prompt(stdin="from a file\n") == n_prompt("from", "a", "file")


def test_json_lines_are_the_tokens_and_the_result(liquid: Liquid, models: Path) -> None:
    lines = [
        json.loads(line) for line in liquid("run", models / "chat.gguf", "hello", "--jsonl", *FIXED).stdout.splitlines()
    ]
    tokens = [line for line in lines[:-1] if line["token"] is not None]
    assert len(tokens) == 6 and all(0 <= line["layers_run"] <= line["layers_total"] == 6 for line in tokens)
    assert "".join(line["text"] for line in lines[:-1]) == lines[-1]["text"]


def test_figures_go_to_stderr(liquid: Liquid, models: Path) -> None:
    result = liquid("run", models / "chat.gguf", "hello", "--verbose", *FIXED)
    assert "6 tokens" in result.stderr and "of 6 layers per token" in result.stderr
    assert "layers" not in result.stdout
    assert liquid("run", models / "chat.gguf", "hello", "--verbose", "-q", *FIXED).stderr == ""


def test_a_context_beyond_the_training_is_one_warning(liquid: Liquid, models: Path) -> None:
    result = liquid("run", "-m", models / "chat.gguf", "hello", "-c", "100000", *FIXED)
    assert result.returncode == 0 and result.stdout.strip()
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ") and "trained on 512 tokens" in line and "context of 100000" in line


def test_a_context_smaller_than_there_are_is_one_warning(liquid: Liquid, models: Path) -> None:
    for asked in ("1", "128"):
        result = liquid("run", "-m", models / "chat.gguf", "hello", "-c", asked, *FIXED)
        (line,) = result.stderr.splitlines()
        assert line.startswith("warning: a context of 256 tokens") and line.endswith(f"-c {asked}")
        assert result.returncode == 0
    assert liquid("run", "-m", models / "chat.gguf", "hello", "-c", "256", *FIXED).stderr == ""


def test_depth_without_gates_names_the_ways_to_get_some(liquid: Liquid, tmp_path: Path) -> None:
    model = random_models.stock(tmp_path)
    failed(liquid("run", "-m", model, "hello", "--depth", "90%"), 2, "no gates", "REF+gates", "--gates PACK")


def test_flags_are_llama_cpps(liquid: Liquid, models: Path) -> None:
    result = liquid(
        "run", "--model", models / "chat.gguf", "-sys", "be brief", "-c", "128", "-b", "64", "-ub", "32", "-ngl", "0",
        "-fa", "off", "-ctk", "bf16", "-ctv", "f16", "-tb", "1", "-s", "5", "--top-k", "20", "--top-p", "0.9",
        "--min-p", "0.1",
        "--repeat-penalty", "1.1", "--repeat-last-n", "16", "--presence-penalty", "0.1", "--frequency-penalty", "0.1",
        "-l", "5-1.5", "-r", "zzz", "--chat-template", "chatml", "-cnv", "-t", "1", "-n", "4", "--ignore-eos", "hello",
        "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert told["seed"] == 5 and told["usage"]["completion_tokens"] == 4, result.stderr


def test_text_without_a_template_or_with_no_cnv_is_continued(liquid: Liquid, models: Path) -> None:
    def n_prompt(model: str, *args: str) -> int:
        result = liquid("run", "-m", models / model, "hello", *args, "-n", "1", "--json")
        return json.loads(result.stdout)["usage"]["prompt_tokens"]

    assert n_prompt("chat.gguf", "-no-cnv") == n_prompt("plain.gguf") < n_prompt("chat.gguf")
    failed(liquid("run", "-m", models / "plain.gguf", "hello", "-cnv"), 2, "no chat template")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--depth", "0.8", "hi"], 2, "80%"),
        (["-c", "99999999999", "hi"], 5, "available"),
        (["-c", "64", "word " * 200], 2, "context"),
        (["-f", "missing", "hi"], 3, "missing"),
        (["-ctv", "q4_0", "-fa", "off", "hi"], 2, "-fa on"),
        (["-f", "chat.gguf"], 2, "is no text but binary"),
        (["--chat-template", "{% if", "hi"], 2, "was given"),
        (["-sys", "a", "-sysf", "b", "hi"], 2, "-sysf"),
        ([], 2, "no prompt"),
        (["-nope", "hi"], 2, "-nope"),
    ],
)
def test_what_cannot_be_meant_ends_in_a_sentence(
    liquid: Liquid, models: Path, args: list[str], code: int, words: str
) -> None:
    (liquid.home / "chat.gguf").write_bytes((models / "chat.gguf").read_bytes())
    failed(liquid("run", "-m", models / "chat.gguf", *args), code, words)


def test_models_that_are_not_there_or_broken_are_refused(liquid: Liquid, models: Path) -> None:
    failed(liquid("run", "missing.gguf", "hi"), 3, "missing.gguf")
    failed(liquid("run", "-m", models, "hi"), 2, "folder")
    broken = liquid.home / "broken.gguf"
    broken.write_bytes((models / "chat.gguf").read_bytes()[:5000])
    failed(liquid("run", "-m", broken, "hi"), 6, "broken.gguf")
    broken.write_bytes(b"\x00" * 100_000)
    failed(liquid("run", "-m", broken, "hi"), 6, "broken.gguf")


def test_a_stock_library_is_one_sentence(liquid: Liquid, models: Path) -> None:
    stub = liquid.home / "llama_cpp"
    stub.mkdir()
    (stub / "__init__.py").write_text("from . import llama_cpp\n__version__ = '0.3.36'\n")
    (stub / "llama_cpp.py").write_text("class _Lib: pass\n_lib = _Lib()\n")
    stock = {"PYTHONPATH": str(liquid.home), "LLAMA_CPP_LIB_PATH": ""}
    failed(liquid("run", "-m", models / "chat.gguf", "hi", **stock), 1, "stock", "pip install")


def test_a_missing_library_is_one_sentence(liquid: Liquid, models: Path) -> None:
    empty = liquid.home / "lib"
    empty.mkdir()
    result = liquid("run", "-m", models / "chat.gguf", "hi", LLAMA_CPP_LIB_PATH=str(empty))
    failed(result, 1, "unset LLAMA_CPP_LIB_PATH")


def test_ctrl_c_stops_the_answer_with_130(liquid: Liquid, models: Path) -> None:
    options = ("-t", "1", "--temp", "0", "--ignore-eos", "-n", "-1", "-c", "200000")
    process = liquid.start("run", "-m", models / "chat.gguf", "hello", *options)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "error: stopped" and "Traceback" not in err


def test_a_closed_pipe_is_no_failure_of_ours(liquid: Liquid, models: Path) -> None:
    process = liquid.start("run", "-m", models / "chat.gguf", "hello", "-n", "400", "--ignore-eos", "-t", "1")
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) in (0, 141) and "Traceback" not in err


def test_an_answer_that_nobody_can_get_is_a_failure(liquid: Liquid, models: Path) -> None:
    for how in ([], ["--json"]):
        command = shlex.join(liquid.command("run", "-m", models / "chat.gguf", "hello", *FIXED, *how)) + " >&-"
        shell = ["sh", "-c", command]
        result = subprocess.run(shell, env=liquid.environment(), capture_output=True, text=True, check=False)
        failed(result, 1, "standard output is closed")


def test_the_depth_of_the_words_is_drawn_to_a_file(liquid: Liquid, models: Path) -> None:
    for name, begins in (("map.html", b"<!doctype html>"), ("map.png", b"\x89PNG")):
        result = liquid("run", "-m", models / "chat.gguf", "hello", *FIXED, "--depth-map", liquid.home / name)
        assert result.returncode == 0 and (liquid.home / name).read_bytes().startswith(begins), result.stderr
    failed(liquid("run", "-m", models / "chat.gguf", "hello", "--depth-map", "map.txt"), 2, "FILE.html")


def test_logprobs_are_part_of_the_json(liquid: Liquid, models: Path) -> None:
    args = ("run", "-m", models / "chat.gguf", "hello", *FIXED, "--logprobs", "3")
    told = json.loads(liquid(*args, "--json").stdout)["logprobs"]["content"]
    assert len(told) == 6
    for token in told:
        top = [other["logprob"] for other in token["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and token["logprob"] == top[0] < 0, "greedy"
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
    lines = [json.loads(line) for line in liquid(*args, "--jsonl").stdout.splitlines()]
    assert [line["logprobs"] for line in lines[:6]] == told
    failed(liquid(*args), 2, "--json")


def test_the_shell_completes_local_models(liquid: Liquid) -> None:
    (liquid.home / "liquid" / "models").mkdir(parents=True)
    for words in ("liquid run smo", "liquid chat smo", "liquid chat -m smo"):
        asked = {"_LIQUID_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert "smollm2-135m" in liquid(**asked).stdout
