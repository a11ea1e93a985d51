"""/sessions, /save and /load: conversations that were kept.

Knows words and tables. The keeper knows files.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..amounts import size_text
from ..errors import UsageError
from ..runtime.session import Session, kept_text
from .console import one_line, out

if TYPE_CHECKING:
    from .repl import Repl

_SHOWN = 20
_TITLE_CHARS = 40


def sessions(repl: Repl, rest: str) -> None:
    word, _, name = rest.partition(" ")
    if not word or word == "list":
        _list(repl)
    elif word in ("load", "delete") and name.strip():
        (load if word == "load" else _delete)(repl, name.strip())
    else:
        raise UsageError(f"/sessions {rest} is not known", hint="/sessions, /sessions load NAME, /sessions delete NAME")


def _list(repl: Repl) -> None:
    keeper = repl.keeper
    found = list(keeper.sessions.all())
    if not found:
        return out.talk("no session has been saved yet")
    rows = [_row(session, keeper.sessions.state_bytes(session.name), keeper.session.name) for session in found]
    out.table(["name", "left", ">turns", ">state", "model", "begins"], rows[:_SHOWN])
    more = f"{len(found) - _SHOWN} older ones; " if len(found) > _SHOWN else ""
    return out.talk(more + kept_text())


def _row(session: Session, state_bytes: int, current: str) -> list[object]:
    mark = "*" if session.name == current else ""
    left = time.strftime("%d %b %H:%M", time.localtime(session.saved_at))
    turns = sum(turn["role"] == "user" for turn in session.turns)
    title = one_line(session.title)
    title = title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 3] + "..."
    return [session.name + mark, left, turns, size_text(state_bytes) if state_bytes else "-",
            session.model.get("name", ""), title]  # fmt: skip


def _delete(repl: Repl, name: str) -> None:
    if name == repl.keeper.session.name and repl.keeper.is_saved:
        raise UsageError(f"{name} is the session you are in", hint="/clear begins another one")
    repl.keeper.sessions.delete(name)
    out.talk(f"deleted: {name}")


def load(repl: Repl, name: str) -> None:
    if not name:
        raise UsageError("load what?", hint="/sessions lists what there is")
    out.talk(repl.keeper.switch(name))


def save(repl: Repl, name: str) -> None:
    if not name:
        raise UsageError("save under which name?", hint="every chat at a terminal is saved; /save NAME names this one")
    if said := repl.keeper.rename(name):
        out.warn(said)
    out.talk(f"this conversation is {name}: it is saved as it goes on and kept until /sessions delete {name}")
