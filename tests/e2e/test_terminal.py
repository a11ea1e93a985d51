"""A chat on a real terminal: long pastes, editing, another width in mid-answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import Liquid
from tests.terminal import Terminal
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

TEMPLATE = "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}"
SHORT = ("-t", "1", "--temp", "0", "--ignore-eos", "-n", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chat.gguf"
    return write_gguf(make_model("linear"), path, chat_template=TEMPLATE)


def history(liquid: Liquid) -> str:
    return (liquid.home / "liquid" / "history").read_text()


def test_a_paste_of_200_lines_is_one_question(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *SHORT, "-c", "20000")
    terminal.see(">>>")
    terminal.paste("\n".join(f"line {i} of many" for i in range(200)))
    terminal.see("line 199")
    terminal.type("\r")
    terminal.see(">>>.*>>>|>>>")
    terminal.type("/context\r")
    assert "2 messages" in terminal.see("2 messages")
    terminal.type("/bye\r")
    assert terminal.end() == 0
    assert "".join(f"+line {i} of many\n" for i in range(200)) in history(liquid)


def test_enter_right_behind_tab_takes_the_whole_word(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *SHORT)
    terminal.see(">>>")
    terminal.type("/cont\t\r")
    terminal.see("0 messages")
    terminal.type("/sh\t in\t\r")  # what several words begin with, then the rest of one
    terminal.see("threads")
    terminal.type("/bye\r")
    assert terminal.end() == 0


def test_lines_are_edited_and_found_again(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *SHORT)
    terminal.see(">>>")
    terminal.type("rivr\x01\x06\x06\x06e\x05 deep\x17wide\r")  # C-a, three times C-f, C-e, C-w
    terminal.see(r"wide.*\n.*\n.*>>>")
    terminal.type("\x10")  # C-p: the line before
    terminal.see("river wide")
    terminal.type("\x15/sta\t")  # C-u, Tab
    terminal.see("/stats")
    terminal.type("\r")
    terminal.see("answer +3 tokens")
    terminal.type("\x04")
    assert terminal.end() == 0 and "+river wide\n" in history(liquid)


def test_words_wrap_at_the_width_that_the_window_has_now(liquid: Liquid, model: Path) -> None:
    words = ("-t", "1", "--grammar", 'root ::= "abcdefg " root', "--no-save", "-c", "100000")
    terminal = Terminal(liquid, "chat", model, *words, COLUMNS="", NO_COLOR="1")
    terminal.see(">>>")
    terminal.resize(100)
    terminal.type("go\r")
    wide = terminal.see("(abcdefg ?){11,}\r\n.*\r\n")
    assert not re.search("(abcdefg ){13}", wide)
    terminal.resize(40)
    terminal.see("\n(abcdefg ?){4,5}\r\n(abcdefg ?){4,5}\r\n")
    terminal.type("\x03")
    terminal.see(r"\(stopped\)")
    terminal.type("/bye\r")
    assert terminal.end() == 0


def test_turns_taken_back_leave_the_context_empty(liquid: Liquid, model: Path) -> None:
    terminal = Terminal(liquid, "chat", model, *SHORT)
    terminal.see(">>>")
    terminal.type("hello\r")
    terminal.see(r"hello.*\n.*\n.*>>>")
    terminal.type("/context\r")
    terminal.see(" [1-9][0-9]* of 512 tokens.*>>>")
    terminal.type("/undo\r")
    terminal.see("taken back: hello.*>>>")
    terminal.type("/context\r")
    terminal.see(" 0 of 512 tokens.*>>>")
    terminal.type("/bye\r")
    assert terminal.end() == 0 and not list((liquid.home / "liquid" / "sessions").glob("*"))
