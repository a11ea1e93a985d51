"""Keeps a conversation on disk while it goes on, and takes it up again with what the model remembered of it.

Knows conversations and sessions. Does not know commands or terminals: what a person should be told is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import IntegrityError, LiquidError, NotFoundError, UsageError
from .chat import Conversation
from .session import KEPT_STATE_BYTES, Session, Sessions
from .state import OtherOrigin


class Keeper:
    """One conversation and the session it is written to; nothing is written before something was said."""

    def __init__(
        self, sessions: Sessions, conversation: Conversation, *, ref: str = "", options: Mapping[str, Any] | None = None
    ) -> None:
        self.sessions, self.conversation = sessions, conversation
        self.paused = False
        self._model: dict[str, str] = {"ref": ref}
        self._options = dict(options or {})
        self.session = self._fresh()
        self._seen_ns = 0  # when the file was written, as far as we know

    def _fresh(self) -> Session:
        return Session(self.sessions.new_name(), options=self._options)

    @property
    def model(self) -> dict[str, str]:
        """What tells this model from others; hashed once, when it is first needed."""
        if "identity" not in self._model:
            info = self.conversation.engine.info
            path = str(Path(info.path).absolute())
            self._model |= {"name": info.name, "path": path, "identity": self.conversation.engine.identity()}
        return self._model

    @property
    def is_saved(self) -> bool:
        return self._seen_ns > 0

    def note(self) -> str:
        """Write what was said so far; a word about it where there is one."""
        conversation, session = self.conversation, self.session
        if self.paused or not conversation.turns:
            return ""
        said = self._step_aside()
        session = self.session
        session.model, session.turns, session.system = self.model, list(conversation.turns), conversation.system
        session.options = self._options | {"depth": str(conversation.engine.policy)}
        session.read = conversation.read_so_far()
        self.sessions.save(session)
        self._seen_ns = self._file_ns()
        return said

    def _step_aside(self) -> str:
        """Another chat goes on with the same session: this one takes a name of its own."""
        if self._file_ns() == self._seen_ns:
            return ""
        taken, self.session = self.session.name, Session(self.sessions.new_name())
        return f"another chat goes on with the session {taken}: this one is {self.session.name} from here"

    def _file_ns(self) -> int:
        path = self.sessions.text_path(self.session.name)
        return path.stat().st_mtime_ns if path.is_file() else 0

    def suspend(self) -> str:
        """Text and state to disk, old states away; a word about what was not kept."""
        if not self.conversation.turns and not self.paused:
            self._forget_unnamed()
        if self.paused or not self.conversation.turns:
            return ""
        said = self.note()
        engine = self.conversation.engine
        if not engine.held():
            return said
        size_bytes = engine.kv_bytes() or 0
        if size_bytes > KEPT_STATE_BYTES:
            return f"a state of {size_bytes / 1e9:.1f} GB is not kept: this session will be read anew from its text"
        try:
            engine.save_state(self.sessions.state_path(self.session.name))
        except (LiquidError, OSError) as error:
            return f"only the text was saved, it will be read anew; the state was not saved: {_words(error)}"
        self.sessions.prune()
        return said

    def resume(self, session: Session) -> str:
        """Go on with a saved conversation; how much of it is remembered, in a line."""
        conversation = self.conversation
        self._take_over(session)
        turns = sum(turn["role"] == "user" for turn in session.turns)
        what = f"session {session.name}, {turns} turn{'s' * (turns != 1)}"
        conversation.engine.clear()
        try:
            n_tokens = len(conversation.engine.load_state(self.sessions.state_path(session.name)))
        except NotFoundError:
            return f"{what}: its state is not kept any more, the text is read anew with the next question"
        except OtherOrigin as error:
            return f"{what}: its state is of another {error.what}, the text is read anew with the next question"
        except IntegrityError as error:
            conversation.engine.clear()
            return f"{what}: its state cannot be used ({error.message}), the text is read anew with the next question"
        return f"{what}, {n_tokens} tokens, as it was left"

    def _take_over(self, session: Session) -> None:
        self.session = session
        self._seen_ns = self._file_ns()
        self.conversation.recall(session.turns, session.read)
        self.conversation.system = session.system

    def switch(self, name: str) -> str:
        """Leave this conversation for a saved one of the same model; UsageError for one of another."""
        session = self.sessions.load(name)
        if session.model.get("identity") != self.model["identity"]:
            raise UsageError(
                f"the session {name} was with another model, {session.model.get('name', 'unknown')}",
                hint=f"/bye, then liquid chat --resume {name}",
            )
        if name == self.session.name and self.conversation.turns:
            raise UsageError(f"{name} is the session you are in", hint="/clear begins another one")
        self.suspend()
        return self.resume(session)

    def start_new(self) -> None:
        """The next turn begins another session; the one so far is kept as it is."""
        self.suspend()
        self.session, self._seen_ns = self._fresh(), 0

    def rename(self, name: str) -> str:
        """A name of a person's choice; from here on the session is saved and kept until it is deleted. A word where
        another chat goes on under the old one."""
        if not self.conversation.turns:
            raise UsageError("there is nothing to save yet", hint=f"say something first, then /save {name}")
        said, self.paused = self._step_aside(), False
        if name != self.session.name:
            self.sessions.rename(self.session.name, name)
        self.session.name, self.session.named, self._seen_ns = name, True, 0
        self._seen_ns = self._file_ns()
        self.note()
        return said

    def pause(self, on: bool) -> None:
        """While paused nothing is written; what was written of this conversation goes."""
        if on and not self.paused:
            self._forget_unnamed()
        self.paused = on

    def _forget_unnamed(self) -> None:
        """What was written of this conversation, unless somebody named it, or another chat goes on with it."""
        if self._seen_ns and not self.session.named and self._file_ns() == self._seen_ns:
            self.sessions.delete(self.session.name)
            self._seen_ns = 0

    def close(self) -> str:
        """`suspend` that never fails: leaving is more important."""
        try:
            return self.suspend()
        except (LiquidError, OSError) as error:
            return f"the session was not saved: {_words(error)}"


def _words(error: Exception) -> str:
    return getattr(error, "message", str(error))
