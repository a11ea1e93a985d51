"""The words of an answer and the layers each took: coloured in a terminal, as a page, as a picture.

Knows words, colours and files. Takes pieces of text and which layers ran; does not know why.
"""

from __future__ import annotations

import html
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..files import atomic_output
from ..runtime.chat import Conversation
from .stream import sanitize
from .wrap import columns

# light to dark: few layers to all of them; the same colours as codes of a 256-colour terminal and as RGB
_TERMINAL = (39, 43, 41, 112, 220, 208, 203)
_RGB = ((0, 175, 255), (0, 215, 175), (0, 215, 0), (135, 215, 0), (255, 215, 0), (255, 135, 0), (255, 95, 95))
_CELL_PIXELS = 8


@dataclass(frozen=True)
class Word:
    """A word with the space before it; `depth` is the mean of its tokens."""

    text: str
    depth: float  # layers run per token
    layers: np.ndarray  # [n_token, n_layer] bool


def words(pieces: Sequence[str], layers: Sequence[np.ndarray]) -> list[Word]:
    """Tokens put together: a new word begins with space, or behind it."""
    found: list[tuple[str, list[np.ndarray]]] = []
    for piece, ran in zip(map(sanitize, pieces), layers, strict=True):
        if not found or piece[:1].isspace() or found[-1][0][-1:].isspace():
            found.append((piece, [ran]))
        else:
            text, rows = found[-1]
            found[-1] = (text + piece, [*rows, ran])
    return [Word(text, float(np.mean([row.sum() for row in rows])), np.array(rows)) for text, rows in found]


class Scale:
    """Colours between the shallowest and the deepest word of an answer."""

    def __init__(self, depths: Sequence[float]) -> None:
        self.low, self.high = min(depths), max(depths)

    def step(self, depth: float) -> int:
        span = self.high - self.low
        return min(int((depth - self.low) / span * len(_RGB)), len(_RGB) - 1) if span > 0 else len(_RGB) // 2

    def bounds(self) -> list[float]:
        return [self.low + (self.high - self.low) * i / len(_RGB) for i in range(len(_RGB))]


def terminal_map(found: Sequence[Word], width: int, *, color: bool) -> list[list[str]]:
    """Lines of pieces for `out.painted`: text and code by turns. Without colours, a word carries its number."""
    scale = Scale([word.depth for word in found])
    lines, column = [[""]], 0
    for word in found:
        text = word.text if color else f"{word.text.rstrip()}[{word.depth:.0f}]" if word.text.strip() else word.text
        for i, part in enumerate(text.split("\n")):
            if i or column + columns(part.rstrip()) > width:
                lines.append([""])
                column, part = 0, part if i else part.lstrip(" ")
            lines[-1] += [_code(scale.step(word.depth)), part, "\x1b[0m", ""] if color else ["", part]
            column += columns(part)
    return [*lines, [""], _legend(scale, color=color)]


def _legend(scale: Scale, *, color: bool) -> list[str]:
    if not color or scale.low == scale.high:
        return [f"layers per word: {scale.low:.1f} to {scale.high:.1f}"]
    parts = ["layers per word: "]
    for step, bound in enumerate(scale.bounds()):
        parts += [_code(step), f"{bound:.1f} ", "\x1b[0m", ""]
    return [*parts[:-1], f"to {scale.high:.1f}"]


def _code(step: int) -> str:
    return f"\x1b[38;5;{_TERMINAL[step]}m"


def write_map(path: Path, pieces: Sequence[str], layers: Sequence[np.ndarray], title: str) -> None:
    """.html: the words, coloured, with the layers of each; .png: a column per token, a row per layer."""
    check_map(path)
    if path.suffix.lower() == ".png":
        raw = png(np.array(layers, bool).T[::-1])
    else:
        raw = page(words(pieces, layers), title).encode("utf-8", "replace")
    with atomic_output(path, len(raw)) as part:
        part.write_bytes(raw)


def draw_reply(path: Path, conversation: Conversation) -> None:
    """The last answer; an answer of no words leaves no map."""
    reply, name = conversation.last, conversation.engine.info.name
    depth = f", depth {reply.summary.policy}" if reply.summary else ""  # a second Ctrl-C leaves no summary
    if reply.layers:
        write_map(path, reply.pieces, reply.layers, name + depth)


def check_map(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, a file name was expected", hint=f"{path / 'map.html'}, or .png")
    if path.suffix.lower() not in (".html", ".htm", ".png"):
        raise UsageError(f"{path} is no kind of depth map", hint="name it FILE.html or FILE.png")


def page(found: Sequence[Word], title: str) -> str:
    """One file, no script, nothing fetched."""
    scale, n_layer = Scale([word.depth for word in found]), found[0].layers.shape[1]
    ran = np.concatenate([word.layers for word in found])
    legend = "".join(
        f'<span class="s{i}">{bound:.1f}</span>' for i, bound in enumerate(scale.bounds()) if scale.low < scale.high
    )
    return _PAGE.format(
        title=html.escape(sanitize(title)),
        colors="".join(f".s{i}{{background:rgba({r},{g},{b},.55)}}" for i, (r, g, b) in enumerate(_RGB)),
        text="".join(map(lambda word: _span(word, scale), found)),
        legend=f"{legend}<span>to {scale.high:.1f}</span>",
        mean=f"{ran.sum(1).mean():.1f} of {n_layer} layers per token, {ran.mean():.0%}",
        rows="".join(_row(layer, float(share)) for layer, share in reversed(list(enumerate(ran.mean(0))))),
    )


def _span(word: Word, scale: Scale) -> str:
    skipped = [str(layer) for layer in np.flatnonzero(~word.layers.all(0))]
    tip = f"{word.depth:.1f} layers" + (f"; skipped: {', '.join(skipped)}" if skipped else "")
    head = len(word.text) - len(word.text.lstrip())
    space, text = word.text[:head], html.escape(word.text[head:])
    return f'{space}<span class="s{scale.step(word.depth)}" title="{tip}">{text}</span>' if text else space


def _row(layer: int, share: float) -> str:
    return f'<tr><th>{layer}</th><td><div style="width:{share:.1%}"></div></td><td>{share:.0%}</td></tr>'


def png(ran: np.ndarray) -> bytes:  # [n_row, n_column] bool
    """A cell per entry, dark where it ran, after the PNG specification: one palette, no filter."""
    cells = np.kron(ran.astype(np.uint8), np.ones((_CELL_PIXELS, _CELL_PIXELS), np.uint8))
    cells[::_CELL_PIXELS] = cells[:, ::_CELL_PIXELS] = 2
    height, width = cells.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), cells], axis=1).tobytes()
    palette = bytes((255, 236, 214, 31, 78, 121, 255, 255, 255))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data)
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""),
        )
    )  # fmt: skip


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Depth map</title><style>
body{{font:16px/1.7 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em;color:#222;background:#fff}}
.text{{white-space:pre-wrap}}
.text span,.legend span{{border-radius:.2em;padding:0 .1em}} .legend span{{padding:0 .5em}}
h1{{font-size:1.1em}} table{{border-collapse:collapse;font-size:.7em;line-height:1.2;width:100%}}
th{{text-align:right;padding-right:.6em;width:2em}} td:last-child{{width:3em;text-align:right}}
td div{{background:#1f4e79;height:.9em}} {colors}
</style></head><body><h1>{title}</h1><p class="text">{text}</p>
<p class="legend">layers per word: {legend}</p><p>{mean}; the share of the tokens that ran each layer:</p>
<table>{rows}</table></body></html>
"""
