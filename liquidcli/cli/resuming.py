"""Which saved session a chat goes on with, and what it brings along.

Knows the options of `chat` and where sessions lie. What was said and remembered is `runtime.keeper`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NotFoundError, UsageError
from ..ui.console import out
from .conversing import default

if TYPE_CHECKING:
    from ..runtime.chat import Conversation
    from ..runtime.keeper import Keeper
    from ..runtime.session import Session, Sessions

_CARRIED = ("gates", "depth", "n_ctx", "type_k", "type_v", "chat_template", "conversation")


def sessions() -> Sessions:
    from ..hub.home import folder
    from ..runtime.session import Sessions

    return Sessions(folder("sessions"))


def names(incomplete: str) -> list[str]:
    """Shell completion."""
    return [name for name in sessions().names() if name.startswith(incomplete)]


def pick(ref: str | None, *, latest: bool, name: str | None) -> Session | None:
    """The session that was asked for; None where none was."""
    if latest and name:
        raise UsageError("--continue and --resume both name a session", hint="give one of them")
    if name:
        return sessions().load(name)
    return _latest(ref) if latest else None


def _latest(ref: str | None) -> Session:
    newest = sessions().latest()
    if newest is None:
        raise NotFoundError("no session has been saved yet", hint="liquid chat begins one")
    if ref is None:
        return newest
    found = next((s for s in sessions().all() if _typed(ref) in (s.model.get("ref"), s.model.get("path"))), None)
    if found is None:
        hint = f"the last one was with {newest.model.get('name')}: liquid chat --continue"
        raise NotFoundError(f"there is no session with {ref}", hint=hint)
    return found


def brought_along(options: Mapping[str, Any], ref: str | None, session: Session) -> tuple[dict[str, Any], str | None]:
    """Options and model of a session, wherever the command line says nothing else; another model brings its own."""
    merged = dict(options)
    if ref is not None and _typed(ref) not in (session.model.get("ref"), session.model.get("path")):
        return merged, ref
    others = ("gates", "depth") if ref is not None and session.options.get("gates") else ()  # the model was named plain
    for name in _CARRIED:
        if name in session.options and name not in others and options[name] == default(name):
            merged[name] = session.options[name]
    if ref is None:
        ref = session.model.get("ref") or None
    return merged, ref


@contextlib.contextmanager
def kept(
    conversation: Conversation, options: Mapping[str, Any], ref: str | None, session: Session | None, *, save: bool
) -> Iterator[Keeper]:
    """The conversation on disk from here on (if it is to be saved), text and state."""
    from ..runtime.keeper import Keeper

    carried = {name: options[name] for name in _CARRIED} | {"n_ctx": conversation.engine.info.n_ctx}
    if options["gates"]:
        carried["gates"] = _typed(options["gates"])
    if options["chat_template_file"]:
        carried["chat_template"] = conversation.format.source
    keeper = Keeper(sessions(), conversation, ref=_typed(ref) if ref else "", options=carried)
    keeper.paused = not save
    if session:
        system = conversation.system
        out.talk(keeper.resume(session))
        conversation.system = conversation.system if system is None else system
    try:
        yield keeper
    finally:
        said = keeper.close()
        with contextlib.suppress(OSError):
            if said:
                out.warn(said)
            elif save and keeper.is_saved:
                out.talk(f"saved as {keeper.session.name}: liquid chat --continue goes on with it")


def _typed(ref: str) -> str:
    """A reference that means the same in another folder."""
    return str(Path(ref).absolute()) if Path(ref).is_file() else ref
