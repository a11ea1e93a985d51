"""`liquid chat` through pipes and at a terminal: turns, commands, Ctrl-C, history."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.command import Liquid, failed
from tests.terminal import Terminal
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant: {% endif %}"
)
FIXED = ("-t", "1", "--temp", "0", "--ignore-eos", "-n", "6")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chat.gguf"
    return write_gguf(make_model("linear"), path, chat_template=TEMPLATE)


def test_lines_of_a_pipe_are_turns_and_commands(liquid: Liquid, model: Path) -> None:
    typed = 'hello\n/set verbose\n"""two\nlines"""\n/depth full\nhello\n/dept\n/depth map layers\n/bye\nnot read\n'
    result = liquid("chat", model, *FIXED, stdin=typed)
    assert result.returncode == 2, "the code of the first error, /dept"
    assert ">>>" not in result.stdout
    figures = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert len(figures) == 2 and "depth auto" in figures[0] and "6.0/6 layers, depth full" in figures[1]
    assert "did you mean /depth?" in result.stderr
    assert "tokens 1 to 6 of 6, 100% of the layers ran" in result.stdout


def test_one_line_is_one_answer_and_the_end(liquid: Liquid, model: Path) -> None:
    alone = liquid("chat", "-m", model, *FIXED, stdin="hello")
    given = liquid("chat", "-m", model, *FIXED, "-p", "hello", "-st", stdin="not read")
    asked = liquid("run", "-m", model, "hello", *FIXED)
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout.strip() == given.stdout.strip() == asked.stdout.strip() != ""


def test_a_chat_without_input_ends_at_once(liquid: Liquid, model: Path) -> None:
    result = liquid("chat", model, *FIXED)
    assert (result.returncode, result.stdout) == (0, "")
    failed(liquid("chat", model, "-m", model), 2, "both")


def test_at_a_terminal_there_is_a_prompt_an_end_and_a_history(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *FIXED)
    assert "6 layers, 6 gates, depth auto, context 512" in terminal.see("/bye leaves")
    terminal.see(">>>")
    terminal.type("/depth full\r")
    terminal.see("depth full; the model's own threshold is tau=0.5")
    terminal.see(">>>")
    terminal.type("one\x0atwo\r")
    terminal.see(r"\.\.\.")
    terminal.type("/stats\r")
    terminal.see("context +[0-9]+ of 512 tokens")
    terminal.see(">>>")
    terminal.type("/unfinished")
    terminal.see("/unfinished")
    terminal.type("\x03")
    terminal.see("to leave: /bye or Ctrl-D")
    terminal.see(">>>")
    terminal.type("\x04")
    assert terminal.end() == 0
    history = (liquid.home / "liquid" / "history").read_text()
    assert "+/depth full" in history and "+one\n+two" in history


def test_ctrl_c_stops_the_answer_and_not_the_chat(liquid: Liquid, model: Path) -> None:
    options = ("-t", "1", "--temp", "0", "--ignore-eos", "-c", "100000")
    terminal = Terminal(liquid, "run", model, *options)  # without a prompt: a chat
    terminal.see(">>>")
    terminal.type("hello\r")
    terminal.see("hello.*\n.{40}")
    terminal.type("\x03")
    terminal.see(r"\(stopped\)")
    terminal.see(">>>")
    terminal.type("/stats\r")
    assert "ended    Ctrl-C" in terminal.see("context +[0-9]+ of 10.... tokens")
    terminal.type("/exit\r")
    assert terminal.end() == 0


def saved(liquid: Liquid) -> list[str]:
    return sorted(path.name for path in (liquid.home / "liquid" / "sessions").glob("*"))


def test_a_chat_at_a_terminal_is_saved_and_goes_on_where_it_was(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *FIXED, "-p", "hello", "--depth", "full")
    terminal.see(">>>.*>>>|>>>")
    os.close(terminal._main)  # the window is closed
    with contextlib.suppress(ProcessLookupError):
        for _ in range(3):  # a shell tells its jobs again
            terminal.process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
    terminal.process.wait(60)
    assert [Path(name).suffix for name in saved(liquid)] == [".json", ".state"]
    on = liquid("chat", "--continue", *FIXED, stdin="/stats\nmore\n/stats\n/save talk\n/sessions\n")
    assert "1 turn, " in on.stderr and "as it was left" in on.stderr and on.returncode == 2, "no answer for /stats yet"
    assert re.search(r"prompt +[0-9]+ \(and [0-9]+ kept\).*depth full", on.stdout, re.DOTALL)
    assert re.search(r"^talk\* .* 2 .*hello", on.stdout, re.MULTILINE)
    assert saved(liquid) == ["talk.json", "talk.state"]
    other = liquid("chat", "--resume", "talk", "-c", "256", *FIXED, stdin="and more\n")
    assert "another context size, the text is read anew" in other.stderr and other.returncode == 0
    plain = write_gguf(make_model("linear"), liquid.home / "plain.gguf")
    another = liquid("chat", plain, "--resume", "talk", *FIXED, stdin="and more\n")
    assert another.returncode == 0 and "another model, the text is read anew" in another.stderr
    failed(liquid("chat", "--resume", "nothing"), 3, "no session nothing", "talk")
    failed(liquid("chat", "other.gguf", "--continue"), 3, "no session with other.gguf", "liquid chat --continue")


def test_a_chat_through_a_pipe_or_with_no_save_leaves_nothing(liquid: Liquid, model: Path) -> None:
    liquid("chat", model, *FIXED, stdin="hello\n")
    terminal = Terminal(liquid, "chat", model, *FIXED, "-p", "hello", "--no-save", "-st")
    terminal.see("\n")
    assert terminal.end() == 0 and saved(liquid) == []
    failed(liquid("chat", "--continue"), 3, "no session has been saved")


def test_a_chat_goes_on_with_another_model_and_in_json(liquid: Liquid, model: Path, tmp_path: Path) -> None:
    other = write_gguf(make_model("moe"), tmp_path / "other.gguf", chat_template=TEMPLATE)
    typed = f"hello\n/model missing.gguf\n/model {other}\n/context\nmore\n/set format json\n/show info\n"
    result = liquid("chat", model, *FIXED, stdin=typed)
    assert result.returncode == 3 and "no file missing.gguf" in result.stderr
    assert "2 messages" in result.stdout and str(other) in result.stdout and "answers are JSON" in result.stderr


def test_markdown_is_drawn_on_a_terminal_unless_it_is_unwanted(liquid: Liquid, model: Path) -> None:
    args = ("-t", "1", "--grammar", 'root ::= "a **b** `c`"', "-p", "hello", "-st", "--no-save")
    _, drawn = liquid.on_terminal("chat", model, *args)
    assert "a \x1b[0m\x1b[1mb\x1b[0m" in drawn and "**" not in drawn
    for extra, env in (((), {"NO_COLOR": "1"}), (("--raw",), {}), ((), {"TERM": "dumb"})):
        _, raw = liquid.on_terminal("chat", model, *args, *extra, **env)
        assert "a **b** `c`" in raw and "\x1b[1m" not in raw
    assert liquid("run", "-m", model, "hello", *args[:4]).stdout == "a **b** `c`\n"


def test_a_pipe_that_nobody_reads_any_more_ends_a_chat(liquid: Liquid, model: Path) -> None:
    options = ("-t", "1", "--ignore-eos", "-c", "100000", "-p", "hello")
    process = liquid.start("chat", model, *options)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) in (0, 141), "and not by a signal"
