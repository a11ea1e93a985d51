"""What an error quotes from a file."""

from __future__ import annotations

from typing import Any

import pytest

from liquidcli.errors import quote


def nested(levels: int) -> list[Any]:
    return [nested(levels - 1)] if levels else []


VOCABULARY = {"vocab": {str(i): i for i in range(1000)}}


@pytest.mark.parametrize("said", ["x" * 1000, VOCABULARY, nested(800), [["a" * 50] * 9] * 9])
def test_what_is_long_or_deep_is_told_shortly(said: Any) -> None:
    text = quote(said)
    assert len(text) <= 80 and "..." in text and text[0] == repr(said)[0]


@pytest.mark.parametrize("said", ["llama", None, 7, -0.5, True, ["a", 1], {"type": "BPE"}, b"GGML"])
def test_what_is_short_is_told_whole(said: Any) -> None:
    assert quote(said) == repr(said)


def test_control_characters_are_spelled() -> None:
    assert quote("\x1b[2J\n") == r"'\x1b[2J\n'"
