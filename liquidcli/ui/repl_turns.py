"""Commands that shape what is asked: /read, /edit, /regen, /undo, /context, /model.

Knows turns and files of text. Streaming an answer is the loop's.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import NotFoundError, UsageError
from ..text_file import read_text
from .completion import typed_path
from .console import out

if TYPE_CHECKING:
    from .repl import Repl

_MAX_FILE_BYTES = 1 << 24
_METER_COLUMNS = 40
_SAY_FIRST = "say something first"


def regen(repl: Repl, _rest: str) -> None:
    events = repl.conversation.regenerate()
    if events is None:
        raise UsageError("there is no answer to make again", hint=_SAY_FIRST)
    repl.show(events, when_stopped="the answer stays as it was")


def undo(repl: Repl, _rest: str) -> None:
    out.talk(f"taken back: {_short(_taken(repl))}")


def edit(repl: Repl, rest: str) -> None:
    """The last question again, in other words: those given, or those typed into what it was."""
    if not rest and not repl.reader.interactive:
        raise UsageError("/edit needs the new words here", hint="/edit TEXT")
    asked = repl.conversation.question()
    if asked is None:
        raise UsageError("there is no turn to take back", hint=_SAY_FIRST)
    if rest:
        ask_instead(repl, rest)
    else:
        repl.prefilled = asked


def ask_instead(repl: Repl, text: str) -> None:
    """Another question in place of the last one, which stays where the new one gets no answer."""
    turns = repl.conversation.turns
    before = list(turns)
    repl.conversation.undo()
    try:
        repl.show(repl.conversation.ask(text), when_stopped="the question stays as it was")
    finally:
        if len(turns) < len(before):
            turns[:] = before


def _taken(repl: Repl) -> str:
    taken = repl.conversation.undo()
    if taken is None:
        raise UsageError("there is no turn to take back", hint=_SAY_FIRST)
    return taken


def read(repl: Repl, rest: str) -> None:
    """Files of text that go with the next question."""
    if not rest:
        raise UsageError("read which file?", hint="/read FILE, or /read *.py")
    pattern = str(typed_path(rest))
    found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))  # noqa: PTH207 - from the root, too
    names = [name for name in found if Path(name).is_file()]
    if not names and Path(pattern).is_dir():
        raise UsageError(f"{rest} is a folder, text files were expected", hint=f"/read {Path(rest) / '*.txt'}")
    if not names:
        raise NotFoundError(f"there is no file {rest}", hint="/read and Tab list what there is")
    for name in names:
        text = read_text(Path(name), _MAX_FILE_BYTES).strip("\n")
        repl.attached.append(f"{Path(name).name}:\n```\n{text}\n```")
        n_tokens = len(repl.engine.tokenize(repl.attached[-1], add_special=False))
        out.talk(f"{name}: {n_tokens} tokens go with your next question")


def context(repl: Repl, _rest: str) -> None:
    used, n_ctx = repl.conversation.n_used(), repl.engine.info.n_ctx
    filled = round(_METER_COLUMNS * used / n_ctx)
    out.data(f"[{'#' * filled}{'.' * (_METER_COLUMNS - filled)}] {used} of {n_ctx} tokens, {used / n_ctx:.0%}")
    out.data(f"{len(repl.conversation.turns)} messages{', a system prompt' if repl.conversation.system else ''}")


def model(repl: Repl, rest: str) -> None:
    """Go on with another model; what was said comes along as text."""
    if not rest:
        return out.data(str(repl.engine.info.path))
    repl.find_model(rest)
    repl.next_model, repl.done = rest, True
    return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
