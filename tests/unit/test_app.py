"""The wiring: every failure ends in a sentence and its exit code, and asking for help loads nothing heavy."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from liquidcli import errors
from liquidcli.cli import app
from liquidcli.cli.failures import explain
from liquidcli.cli.mistyped import one_dash_word

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from startup import BARE

HEAVY = ("numpy", "llama_cpp", "huggingface_hub", "prompt_toolkit", "torch", "gguf", "rich", "transformers")


@pytest.mark.parametrize(("raised", "code", "words"), [
    (errors.IntegrityError("broken"), 6, "broken"),
    (FileNotFoundError(errno.ENOENT, "x", "gone.txt"), 3, "gone.txt: no such file"),
    (IsADirectoryError(errno.EISDIR, "x", "dir"), 2, "dir is a folder"),
    (PermissionError(errno.EACCES, "x", "secret"), 1, "secret: permission denied"),
    (OSError(errno.ENOSPC, "x", "out.gguf"), 7, "disk is full (out.gguf)"),
    (OSError(errno.ENOSPC, "x"), 7, "no room left"),
    (MemoryError(), 5, "memory"),
    (KeyboardInterrupt(), 130, "stopped"),
    (ModuleNotFoundError("x", name="torch"), 1, "needs the package torch"),
    (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_every_exception_has_a_sentence_and_a_code(raised: BaseException, code: int, words: str) -> None:
    failure = explain(raised)
    assert failure.exit_code == code and words in failure.message


@pytest.mark.parametrize(("package", "hint"), [
    ("torch", "pip install 'liquid-depth[train]'"), ("safetensors.numpy", "pip install 'liquid-depth[train]'"),
    ("matplotlib.figure", "pip install 'liquid-depth[plot]'"), ("regex", None),
])  # fmt: skip
def test_a_package_that_is_missing_is_hinted_by_the_extra_that_brings_it(package: str, hint: str | None) -> None:
    assert explain(ModuleNotFoundError("x", name=package)).hint == hint


def test_an_unexpected_exception_is_no_traceback_unless_asked_for(monkeypatch, capsys) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("liquidcli.cli.verify.verify", broken)
    assert app.execute(["verify"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err and "LIQUID_DEBUG=1" in shown.err
    monkeypatch.setenv("LIQUID_DEBUG", "1")
    assert app.execute(["verify"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "words"), [
    (["nonsense"], "nonsense"), (["list", "--nonsense"], "--nonsense"), (["list", "extra"], "extra"),
    (["cp", "only-one"], "ALIAS"), (["show", "--get"], "--get"), (["rm"], "REF"), ([], ""),
])  # fmt: skip
def test_usage_errors_exit_2(line: list[str], words: str, capsys) -> None:
    assert app.execute(line) == 2
    shown = capsys.readouterr()
    if line:
        assert shown.out == "" and shown.err.startswith("error: ") and words in shown.err and "--help" in shown.err


@pytest.mark.parametrize(("line", "asked"), [
    (["gates", "apply", "p.gguf", "p.gguf", "-o", "x"], "gates apply"),
    (["gates", "report", "--text", "x"], "gates report"),
    (["gates", "train", "p.gguf", "-o", "x", "--target", "80"], "gates train"), (["gates", "bogus"], "gates"),
    (["perplexity", "--depth", "full", "-f", "."], "perplexity"),
])  # fmt: skip
def test_a_usage_error_points_to_the_help_of_what_was_typed(line: list[str], asked: str, monkeypatch, capsys) -> None:
    def off(*_args: object) -> None:
        raise errors.UsageError("the words are off")

    monkeypatch.setattr("liquidcli.gates.apply.apply_pack", off)
    monkeypatch.setattr("liquidcli.text_file.read_text", off)
    assert app.execute(line) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"hint: liquid {asked} --help"


@pytest.mark.parametrize("flag", ["-m", "--model", "-hf", "--hf-repo", "-mu", "--model-url"])
def test_models_are_named_with_llama_cpps_flags(flag: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LIQUID_HOME", str(tmp_path))
    (tmp_path / "text").write_text("a text")
    line = ["perplexity", flag, "someone/nothing:Q4_0", "-f", str(tmp_path / "text"), "--offline"]
    assert app.execute(line) == 3
    assert "someone/nothing:Q4_0 is not on this machine" in capsys.readouterr().err


def test_a_group_without_a_command_shows_its_help(capsys) -> None:
    assert app.execute(["gates"]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: liquid gates") and "apply" in shown.out and shown.err == ""


@pytest.fixture
def command() -> object:
    sample = typer.Typer()

    @sample.callback()
    def root(version: bool = typer.Option(False, "--version")) -> None: ...

    @sample.command()
    def run(
        predict: int = typer.Option(-1, "-n", "--predict"),
        layers: str = typer.Option("auto", "-ngl", "--gpu-layers"),
        prompt: str = typer.Option("", "-p", "--prompt"),
        model: str = typer.Option("", "-m", "--model"),
        quiet: bool = typer.Option(False, "-q"),
        verbose: bool = typer.Option(False, "-v"),
        words: list[str] = typer.Argument(None),
    ) -> None: ...

    return typer.main.get_command(sample)


@pytest.mark.parametrize("line", [
    "run -n 5", "run -n5", "run -n -1", "run -ngl 99", "run -ngl=all", "run -qv", "run -p -prompt", "run -mfile.gguf",
    "run -- -nope", "run --predict 3 word", "--version",
])  # fmt: skip
def test_right_words_pass(command: object, line: str) -> None:
    assert one_dash_word(command, line.split()) is None


@pytest.mark.parametrize(("line", "meant"), [
    ("run -prompt hello", "--prompt"), ("run -promt hello", "--prompt"), ("run -model x.gguf", "--model"),
    ("run -predict 5", "--predict"), ("run -ng 5", "-ngl"), ("run -gpu-layers=3", "--gpu-layers"),
    ("-versio", "--version"), ("run -nope", "run --help"), ("run -xyz", "run --help"),
])  # fmt: skip
def test_mistyped_one_dash_words_are_named(command: object, line: str, meant: str) -> None:
    error = one_dash_word(command, line.split())
    word = next(part for part in line.split() if part.startswith("-"))
    assert error.exit_code == 2 and error.message == f"no such option: {word}" and meant in error.hint


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("line", "code"), [("list --json", 0), ("show nosuch", 3)])
def test_a_closed_stream_is_a_failure_only_where_a_result_is_lost(
    closed: str, line: str, code: int, tmp_path: Path
) -> None:
    lost = code == 0 and ">&-" in closed.split()
    command = f"{sys.executable} -m liquidcli {line} {closed}"
    state = {"LIQUID_HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, env=os.environ | state)
    assert result.returncode == (1 if lost else code)
    assert "Traceback" not in result.stderr and "internal" not in result.stderr
    assert not lost or "2>&-" in closed or result.stderr.startswith("error: standard output is closed")


def test_asking_for_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom liquidcli.cli.app import HIDDEN, VERBS, execute\n"
        "for name in ([], *([name] for name in (*VERBS, *HIDDEN))): execute([*name, '--help'])\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "Usage: liquid" in result.stdout and result.stderr.strip() == ""


@pytest.mark.parametrize("verb", app.VERBS)
def test_the_list_of_verbs_says_what_their_own_help_begins_with(verb: str) -> None:
    whole = app.command_for([verb]).commands[verb]
    assert " ".join(whole.help.split()).startswith(app.VERBS[verb].removesuffix("."))


def test_help_takes_no_longer_than_a_bare_apps(tmp_path: Path) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(BARE.format(n=len(app.VERBS)))
    lines = ([sys.executable, str(bare), "--help"], [sys.executable, "-m", "liquidcli", "--help"])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    cached = kept | {"PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}  # as it is from the second time on
    best = [min(times) for times in zip(*([_seconds(line, cached) for line in lines] for _ in range(6)), strict=True)]
    assert best[1] <= 1.3 * best[0]


def _seconds(line: list[str], environment: dict[str, str]) -> float:
    """Of the processor: a busy machine takes longer, not more."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, stdout=subprocess.DEVNULL, timeout=120, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from liquidcli.ui.console import out\nfor i in range(100000): out.data(str(i))"
    line = f"{sys.executable} -c '{code}' | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (141, "0\n", "")


def test_version_names_the_parts() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "liquidcli", "--version"], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert result.stdout.startswith("liquid ") and "llama-cpp-python" in result.stdout


@pytest.mark.parametrize(("line", "hint"), [
    ("run -m missing.gguf hi", "liquid list"), ("run --repeat-penalty 0 hi", "liquid run --help"),
    ("run -f missing", "ls"), ("chat a b c", "liquid chat --help"), ("nosuch", "liquid --help"),
    ("run -s 99999999999 hi", "liquid run --help"),
])  # fmt: skip
def test_every_failure_names_what_to_type_next(line: str, hint: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LIQUID_HOME", str(tmp_path))
    monkeypatch.setattr("liquidcli.cli.run._stdin_speaks", lambda _: False)
    assert app.execute(line.split()) in (2, 3)
    assert f"hint: {hint}" in capsys.readouterr().err
