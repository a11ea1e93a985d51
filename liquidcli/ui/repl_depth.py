"""/depth and /compare: how deep the tokens go, what it looks like, and what it changes.

Knows words, maps and columns. The engine knows depth.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..runtime.chat import Reply
from ..runtime.depth import DepthPolicy
from .completion import typed_path
from .console import out, wants_color
from .depth_map import depth_map, token_map
from .depth_words import draw_reply, terminal_map, words
from .figures import answer_layers
from .stream import sanitize
from .wrap import WordWrap, columns

if TYPE_CHECKING:
    from .repl import Repl

_GAP = " | "
_NARROW = 32


def depth(repl: Repl, rest: str) -> None:
    if rest.split(" ")[0] == "map":
        return _map(repl, rest.removeprefix("map").strip())
    if rest:
        setting = repl.engine.set_depth(DepthPolicy.parse(rest))
        if setting.note:
            out.warn(setting.note)
    info = repl.engine.info
    own = f"; the model's own threshold is tau={info.threshold:g}" if info.gates else "; this model has no gates"
    out.talk(f"depth {repl.engine.policy}{own}")
    return None


def _map(repl: Repl, rest: str) -> None:
    reply = repl.conversation.last
    if not reply.layers:
        raise UsageError("there is no answer to draw", hint="say something first, then /depth map")
    path = typed_path(rest)
    if rest and (path.suffix or path.is_dir() or "/" in rest):
        draw_reply(path, repl.conversation)
        return out.talk(f"written: {path}")
    if rest not in ("", "tokens", "layers"):
        raise UsageError(f"/depth map {rest} is not known", hint="/depth map, and behind it: layers, tokens, FILE.html")
    width = shutil.get_terminal_size().columns
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    if not rest:
        for parts in terminal_map(words(reply.pieces, reply.layers), width, color=wants_color(sys.stdout)):
            out.painted(parts)
            out.painted(["\n"])
        return None
    drawn = (
        token_map(reply.pieces, reply.layers, width, unicode=unicode)
        if rest == "tokens"
        else depth_map(reply.layers, width, unicode=unicode)
    )
    for line in drawn:
        out.data(line)
    return None


def compare(repl: Repl, _rest: str) -> None:
    """The last answer beside what every layer would have said to the same words."""
    from ..runtime.beside import at_full_depth

    last = repl.conversation.last
    full = at_full_depth(repl.conversation)
    left, right = _headed(f"depth {last.ended().policy}", last), _headed("depth full", full)
    for line in side_by_side(left, right, shutil.get_terminal_size().columns):
        out.data(line)
    same = _same(last.tokens, full.tokens)
    n = max(len(last.tokens), len(full.tokens))
    out.talk("the same answer" if same == n else f"the same for {same} of {n} tokens, then they part")


def _headed(title: str, reply: Reply) -> list[str]:
    summary = reply.ended()
    t, d = summary.timings, summary.depth
    rate = f"{t.predicted_n / t.predicted_ms * 1000:.1f} tokens/s" if t.predicted_ms > 0 else "no tokens"
    layers = f"{answer_layers(reply):.1f} of {d.layers_total} layers"
    return [title, f"{layers}, {rate}", "", *sanitize(reply.text).split("\n")]


def side_by_side(left: list[str], right: list[str], width: int) -> list[str]:
    """Two texts in two columns; below each other where the columns would be too narrow."""
    room = (width - len(_GAP)) // 2
    if room < _NARROW:
        return [*left, "", *right]
    pairs = _paired(_folded(left, room), _folded(right, room))
    return [f"{a}{' ' * (room - columns(a))}{_GAP}{b}".rstrip() for a, b in pairs]


def _paired(left: list[str], right: list[str]) -> list[tuple[str, str]]:
    n = max(len(left), len(right))
    return list(zip(left + [""] * (n - len(left)), right + [""] * (n - len(right)), strict=True))


def _folded(lines: list[str], room: int) -> list[str]:
    folded: list[str] = []
    for line in lines:
        wrap = WordWrap(room)
        for part in (wrap.feed(line.expandtabs(4)) + wrap.end()).split("\n"):
            folded += _cut(part.rstrip(), room)
    return folded


def _cut(line: str, room: int) -> list[str]:
    """A word that is longer than a line goes on in the next."""
    parts = [""]
    for char in line:
        if columns(parts[-1] + char) > room:
            parts.append("")
        parts[-1] += char
    return parts


def _same(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
