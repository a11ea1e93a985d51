"""Model files that mean harm: their templates reach nothing, and nothing they say steers a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Liquid, failed
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

FIXED = ("-t", "1", "--temp", "0", "-n", "40")
ESCAPES = "\x1b]0;owned\x07", "\x1b[31m", "\x1b", "\x07", "\x9b"
GRAMMAR = r'root ::= "ab" "\x1B]0;owned\x07" "cd" "\x1B[31m" "ef"'
TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch FILE') }}",
    "{% for m in messages %}{{ m.__init__.__globals__ }}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.popen('touch FILE') }}",
    "{{ self.__init__.__globals__['__builtins__']['open']('FILE', 'w') }}",
    "{{ messages.append(messages) }}",
    "{{ 'x' * 10**12 }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_runs_nothing_and_reads_nothing(liquid: Liquid, tmp_path: Path, template: str) -> None:
    touched = tmp_path / "touched"
    model = write_gguf(make_model("linear"), tmp_path / "m.gguf", chat_template=template.replace("FILE", str(touched)))
    result = liquid("run", "-m", model, "hi", *FIXED)
    failed(result, 1, "template of this model failed", "--chat-template chatml")
    assert not touched.exists() and "root:" not in result.stderr and "<class" not in result.stderr


def test_what_a_file_calls_itself_steers_no_terminal(liquid: Liquid, tmp_path: Path) -> None:
    model = write_gguf(make_model("linear"), tmp_path / "m.gguf", chat_template="{{ messages[0].content }}\x1b]0;x\x07")
    raw = model.read_bytes()
    name = b"\x04\0\0\0\0\0\0\0tiny"
    assert raw.count(name) == 1
    model.write_bytes(raw.replace(name, name.replace(b"tiny", b"\x1b[2J")))
    said = "/show info\n/show template\n/bye\n"
    for result in (liquid("show", model), liquid("show", model, "--json"), liquid("chat", model, *FIXED, stdin=said)):
        assert result.returncode == 0 and not any(code in result.stdout + result.stderr for code in ESCAPES)
    _, shown = liquid.on_terminal("chat", model, *FIXED, "-p", "hi", "-st", "--no-save", "--raw", NO_COLOR="1")
    assert "m.gguf\r\n6 layers" in shown and "\x1b[2J" not in shown and "\x1b]0;" not in shown


def test_what_a_model_says_steers_no_terminal(liquid: Liquid, tmp_path: Path) -> None:
    model = write_gguf(make_model("linear"), tmp_path / "m.gguf", chat_template="{{ messages[0].content }}")
    line = ("-m", model, "hi", *FIXED, "--grammar", GRAMMAR)
    assert liquid("run", *line).stdout == "abcdef\n"
    assert "\\u001b" in liquid("run", *line, "--json").stdout and "\x1b" not in liquid("run", *line, "--jsonl").stdout
    _, shown = liquid.on_terminal("run", *line, NO_COLOR="1")
    assert shown.strip() == "abcdef"
    _, shown = liquid.on_terminal("run", *line)
    assert "owned" not in shown and "\x1b[31m" not in shown
