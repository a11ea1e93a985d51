"""The words of an answer by their depth: nothing lost, nothing raw, files that are what they say."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from liquidcli.errors import UsageError
from liquidcli.ui.depth_words import Scale, check_map, page, png, terminal_map, words, write_map
from liquidcli.ui.repl_depth import side_by_side
from liquidcli.ui.wrap import columns

PIECES = ["The", " riv", "er", " <b>&\x1b[31m", "\n\n", "next", " ", "end"]
LAYERS = [np.arange(4) < n for n in (4, 1, 2, 4, 4, 3, 4, 4)]


def test_tokens_are_put_together_to_words() -> None:
    found = words(PIECES, LAYERS)
    assert [word.text for word in found] == ["The", " river", " <b>&", "\n\n", "next", " ", "end"]
    assert [word.depth for word in found][:2] == [4.0, 1.5]
    assert sum(len(word.layers) for word in found) == len(PIECES)


def test_the_shallowest_and_the_deepest_have_the_ends_of_the_scale() -> None:
    assert [Scale([1.0, 8.0]).step(depth) for depth in (1.0, 4.5, 8.0)] == [0, 3, 6]
    assert Scale([5.0]).step(5.0) == 3


@pytest.mark.parametrize("color", [True, False])
def test_the_map_fits_the_terminal_and_says_every_word(color: bool) -> None:
    lines = terminal_map(words([f" word{i}" for i in range(60)], [np.ones(4, bool)] * 60), 40, color=color)
    shown = ["".join(parts[::2]) for parts in lines[:-2]]
    assert all(columns(line) <= 40 for line in shown)
    assert re.findall(r"word\d+", "".join(shown)) == [f"word{i}" for i in range(60)]
    assert all(re.fullmatch(r"|\x1b\[[0-9;]+m", code) for parts in lines for code in parts[1::2])
    assert ("[4]" in shown[0]) is not color


def test_a_page_quotes_what_the_model_said() -> None:
    found = page(words(PIECES, LAYERS), "<script>\x1b")
    assert "&lt;b&gt;&amp;" in found and "<b>" not in found and "<script" not in found and "\x1b" not in found
    assert 'title="1.5 layers; skipped: 1, 2, 3"' in found and found.count("<tr>") == 4


def test_a_picture_has_a_row_per_layer_and_a_column_per_token(tmp_path: Path) -> None:
    write_map(tmp_path / "map.png", PIECES, LAYERS, "")
    raw = (tmp_path / "map.png").read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", raw[16:24]) == (8 * len(PIECES), 8 * 4)
    at = raw.index(b"IDAT")
    size = struct.unpack(">I", raw[at - 4 : at])[0]
    rows = np.frombuffer(zlib.decompress(raw[at + 4 : at + 4 + size]), np.uint8).reshape(32, -1)[:, 1:]
    assert np.array_equal(rows[4::8, 4::8][::-1].T.astype(bool), np.array(LAYERS))
    assert struct.unpack(">I", raw[at + 4 + size : at + 8 + size])[0] == zlib.crc32(raw[at : at + 4 + size])


def test_another_kind_of_file_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kind of depth map"):
        check_map(tmp_path / "map.txt")
    assert png(np.ones((1, 1), bool))


def test_two_answers_stand_side_by_side_or_below_each_other() -> None:
    left, right = ["a b c " * 20, "", "日本語" * 20], ["x"]
    wide = side_by_side(left, right, 80)
    assert all(columns(line.split(" |")[0]) <= 38 for line in wide) and " | x" in wide[0]
    assert "".join(line.split(" |")[0] for line in wide).count("日") == 20
    assert side_by_side(left, right, 40) == [*left, "", "x"]
