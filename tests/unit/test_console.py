"""What reaches a terminal, and how: controls removed, modes kept, JSON that every reader can read."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from liquidcli.amounts import age_text, count_text, size_text
from liquidcli.errors import IntegrityError
from liquidcli.ui.console import Out
from liquidcli.ui.stream import Sanitizer, sanitize
from liquidcli.ui.tables import render


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use(monkeypatch: pytest.MonkeyPatch, stdout: io.StringIO, stderr: io.StringIO) -> None:
    for module in ("console", "progress"):
        own = SimpleNamespace(stdout=stdout, stderr=stderr, stdin=io.StringIO())
        monkeypatch.setattr(f"liquidcli.ui.{module}.sys", own)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    stdout, stderr = Terminal(), Terminal()
    use(monkeypatch, stdout, stderr)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stdout, stderr


@pytest.mark.parametrize(("hostile", "shown"), [
    ("plain\ttext\nwith lines", "plain\ttext\nwith lines"),
    ("red \x1b[31mtext\x1b[0m!", "red text!"),
    ("title \x1b]0;evil\x07end", "title end"),
    ("title \x1b]0;evil\x1b\\end", "title end"),
    ("link \x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "link text"),
    ("device \x1bP1$r0m\x1b\\end", "device end"),
    ("charset \x1b(0end \x1b7end", "charset end end"),
    ("c1 \x9b31mtext \x9d0;evil\x9cend \x85next", "c1 text end next"),
    ("bell\x07 back\x08\x08 return\r delete\x7f null\x00", "bell back return delete null"),
    ("bidi \u202egnp.exe\u202c \u2066x\u2069", "bidi gnp.exe x"),
    ("unfinished \x1b]0;never closed\nnext line", "unfinished \nnext line"),
    ("broken \x1b[31\x1b[0mend", "broken end"),
    ("surrogate \ud800end", "surrogate end"),
    ("emoji \U0001f469\u200d\U0001f52c, hebrew \u05d0\u200f", "emoji \U0001f469\u200d\U0001f52c, hebrew \u05d0\u200f"),
])  # fmt: skip
def test_nothing_steers_the_terminal(hostile: str, shown: str) -> None:
    assert sanitize(hostile) == shown
    sanitizer = Sanitizer()
    assert "".join(sanitizer.feed(char) for char in hostile) == shown, "split over pieces"


def test_a_sequence_without_end_does_not_swallow_the_answer() -> None:
    text = "\x1b]0;" + "a" * 10_000
    assert 0 < len(sanitize(text)) < 10_000


def test_json_is_safe_and_whole(terminal) -> None:
    stdout, _ = terminal
    value = {
        "text": "a\x1b[0m\x9b\u202e\ud800é", "nan": math.nan, "inf": -math.inf, "path": Path("x") / "y",
        3: np.float32(0.5), "array": np.arange(3), "nested": [{"t": (1, 2)}],
    }  # fmt: skip
    Out().json(value)
    shown = stdout.getvalue()
    assert not any(char in shown for char in "\x1b\x9b\u202e\ud800") and "é" in shown
    assert json.loads(shown) == {
        "text": "a\x1b[0m\x9b\u202e\ud800é", "nan": None, "inf": None, "path": str(Path("x/y")), "3": 0.5,
        "array": [0, 1, 2], "nested": [{"t": [1, 2]}],
    }  # fmt: skip


def test_errors_are_one_line_whatever_the_file_said(terminal, monkeypatch) -> None:
    stdout, stderr = terminal
    Out().error(IntegrityError("bad\nname \x1b[31m", hint="try\nthis"))
    assert stderr.getvalue() == "\x1b[1;31merror:\x1b[0m bad name\n\x1b[36mhint:\x1b[0m try this\n"
    stderr.truncate(0), stderr.seek(0)
    monkeypatch.setenv("NO_COLOR", "1")
    Out().error(IntegrityError("bad"))
    assert stderr.getvalue().startswith("error: bad\nhint: ") and stdout.getvalue() == ""


def test_quiet_is_quiet_but_errors_speak(terminal) -> None:
    stdout, stderr = terminal
    out = Out()
    out.configure(quiet=True)
    out.talk("talk"), out.warn("warning"), out.data("data")
    with out.progress("work", 10) as bar:
        bar.update(5)
    assert (stdout.getvalue(), stderr.getvalue()) == ("data\n", "")
    out.error(IntegrityError("bad"))
    assert "bad" in stderr.getvalue()


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_plain_terminals_get_no_escapes(terminal, monkeypatch, env: dict[str, str]) -> None:
    stdout, stderr = terminal
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    out = Out()
    out.table(["NAME", ">SIZE"], [("a", 1)])
    out.warn("careful")
    assert "\x1b" not in stdout.getvalue() + stderr.getvalue()


def test_progress_is_drawn_on_terminals_and_not_in_pipes(terminal, monkeypatch) -> None:
    stdout, stderr = terminal
    with Out().progress("fetching", 100) as bar:
        bar.update(50, 100, "name\x1b[31m.gguf")
    assert "name.gguf" in stderr.getvalue()
    pipe = io.StringIO()
    use(monkeypatch, stdout, pipe)
    with Out().progress("fetching", 100) as bar:
        bar.update(50)
    assert pipe.getvalue() == ""


def test_tables_fold_on_a_terminal_and_never_in_a_pipe(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    rows = [("owner/" + "n" * 200, "1.2 GB"), ("[bold]x[/bold] \x1b[31m\n", "3 B")]
    piped = render(["NAME", ">SIZE"], rows, io.StringIO()).splitlines()
    assert len(piped) == 3 and "n" * 200 in piped[1] and "[bold]x[/bold]" in piped[2]
    assert piped[1].index("1.2 GB") + 6 == piped[2].index("3 B") + 3, "numbers end in one column"
    shown = render(["NAME", ">SIZE"], rows, Terminal()).splitlines()
    assert max(map(len, shown)) <= 80 and len(shown) > 3
    assert "".join(line.split()[0] for line in shown).count("n") == 200 + "owner".count("n"), "folded, not cut"


def test_numbers_in_words() -> None:
    assert [size_text(n) for n in (0, 999, 98_362_432, 4_000_000_000)] == ["0 B", "999 B", "98.4 MB", "4.0 GB"]
    assert [count_text(n) for n in (12, 134_515_008, 8_030_261_248)] == ["12", "134.5M", "8.0B"]
    assert [age_text(s) for s in (5, 61, 7200, 90_000, 2e6)] == [
        "just now", "1 minute ago", "2 hours ago", "1 day ago", "3 weeks ago"
    ]  # fmt: skip


def test_talk_breaks_between_words_on_a_terminal_and_nowhere_in_a_pipe(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    text = "seven words that do not fit into forty columns"
    for stream, shown in ((Terminal(), text.replace(" columns", "\ncolumns")), (io.StringIO(), text)):
        monkeypatch.setattr(sys, "stderr", stream)
        Out().talk(text)
        assert stream.getvalue().replace(" \n", "\n") == f"{shown}\n"
