"""Plain values are taken as they are, and as the parser would have taken them."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from liquidcli.cli import app
from liquidcli.cli.plain_values import let_through

LINES = [
    "run", "run hi", "run a b c", "run -m x -t 1 -n -1 --temp 0.5 -s 7", "run -c 0 -n 5 -q --json -no-cnv",
    "run --temp 1e-1 -c 1_000", "run -r stop -r end -l 5-1", "chat x -f file.txt --depth 90%", "run --temp .5 -t 08",
    "chat --resume name -st", "bench -p 512 -n 1 -r 2", "perplexity -m x -f y -c 32", "rm a b", "list --json",
]  # fmt: skip
WRONG = ["run -t 0", "run -t x", "run -n -2", "run --temp -1", "run -t 1.5", "run --logprobs 101", "cp", "run -c -1"]


def parsed(line: str, *, quick: bool, presets: dict | None = None) -> dict:
    verb, *args = line.split()
    command = app.command_for([verb])
    if quick:
        let_through(command, verb)
    return command.commands[verb].make_context(verb, args, default_map=presets).params


@pytest.mark.parametrize("line", LINES)
def test_a_line_means_the_same(line: str) -> None:
    quick, slow = parsed(line, quick=True), parsed(line, quick=False)
    assert quick == slow and {k: type(v) for k, v in quick.items()} == {k: type(v) for k, v in slow.items()}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_one_is_refused_in_the_same_words(line: str) -> None:
    said = []
    for quick in (True, False):
        with pytest.raises(typer.TyperException) as caught:
            parsed(line, quick=quick)
        said.append((caught.value.format_message(), caught.value.exit_code))
    assert said[0] == said[1]


@pytest.mark.parametrize("presets", [
    {"n_ctx": 4096, "temp": 1, "depth": 90, "json": True}, {"n_ctx": "4096", "temp": "0.5", "reverse_prompt": ["a"]},
    {"file": "x.txt"},
])  # fmt: skip
def test_what_is_set_elsewhere_means_the_same(presets: dict) -> None:
    assert parsed("run hi", quick=True, presets=presets) == parsed("run hi", quick=False, presets=presets)


def test_paths_are_paths() -> None:
    assert parsed("run -f file.txt", quick=True)["file"] == Path("file.txt")
