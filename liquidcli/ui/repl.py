"""The loop of a chat: read a turn, stream the answer, carry on.

Knows the conversation, the reader and the console. Commands live in `repl_commands`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path

from ..errors import Interrupted, LiquidError, PromptTooLong, UsageError
from ..runtime.chat import Conversation
from ..runtime.engine import Engine
from ..runtime.events import Event
from ..runtime.keeper import Keeper
from . import repl_commands, repl_turns
from .answer import AnswerView
from .console import out
from .depth_words import draw_reply
from .figures import answer_line, answer_status, engine_line, reading_text
from .lineedit import Reader
from .waiting import said_until_first

_NEARLY_FULL = (0.95, 0.80)
_TAKEN_BACK = "the question is taken back, Up brings it again"


class Repl:
    """One chat at a terminal or through a pipe."""

    def __init__(
        self, conversation: Conversation, reader: Reader, keeper: Keeper, *, verbose: bool = False,
        markdown: bool = True, depth_map: Path | None = None, find_model: Callable[[str], object] = str,
    ) -> None:  # fmt: skip
        self.conversation: Conversation = conversation
        self.engine: Engine = conversation.engine
        self.reader, self.keeper, self.verbose = reader, keeper, verbose
        self.wordwrap, self.markdown = reader.interactive, markdown
        self.prefilled = ""  # what the next turn begins with, for its reader to change
        self.attached: list[str] = []  # what goes with the next question
        self.find_model: Callable[[str], object] = find_model  # raises where there is none
        self.next_model: str | None = None
        self.depth_map = depth_map  # where the last answer is drawn
        self.done = False
        self.n_answers = 0
        self.failure: LiquidError | None = None  # the first one; the chat went on
        self._warned = 0.0

    def run(self, first: str = "", *, single_turn: bool = False) -> None:
        """Until /bye, Ctrl-D or the end of the input; `first` is asked before anything is read."""
        if self.reader.interactive:
            out.talk(engine_line(self.engine))
            out.talk("/help lists the commands, /bye leaves")
        if not self.conversation.is_chat:
            out.talk("this model has no chat template: it goes on with your text instead of answering")
        if first:
            self._turn(first)
        while not self.done and not (single_turn and self.n_answers):
            try:
                prefilled, self.prefilled = self.prefilled, ""
                text = self.reader.read(prefilled, answer_status(self.conversation))
                if text is None:
                    return
                if text:
                    self._turn(text, replacing=bool(prefilled))
            except KeyboardInterrupt:
                if not self.reader.interactive:
                    raise
                out.talk("to leave: /bye or Ctrl-D")

    def _turn(self, text: str, *, replacing: bool = False) -> None:
        try:
            if text.startswith("/"):
                repl_commands.dispatch(self, text)
            else:
                self._ask(text, replacing=replacing)
        except Interrupted:
            raise
        except LiquidError as error:
            if isinstance(error, PromptTooLong):
                error.hint = "/clear or /undo makes room, -c N at the start a larger context"
            if isinstance(error, UsageError):
                error.hint = error.hint or "/help lists what there is"
            self._fail(error)
        except OSError as error:  # a file that somebody named
            reason = (error.strerror or str(error)).lower()
            self._fail(LiquidError(f"{error.filename}: {reason}" if error.filename else reason))

    def _ask(self, text: str, *, replacing: bool) -> None:
        attached, self.attached = self.attached, []
        asked, n_turns = "\n\n".join([*attached, text]), len(self.conversation.turns)
        try:
            if replacing:
                repl_turns.ask_instead(self, asked)
            else:
                self.show(self.conversation.ask(asked))
        finally:
            if not replacing and len(self.conversation.turns) == n_turns:  # nothing was asked
                self.attached = attached

    def _fail(self, error: LiquidError) -> None:
        out.error(error)
        self.failure = self.failure or error

    def show(self, events: Generator[Event], when_stopped: str = _TAKEN_BACK) -> None:
        """Stream an answer to stdout, and what is to be said about it to stderr."""
        view = AnswerView(markdown=self.markdown, wordwrap=self.wordwrap)
        with closing(events):  # also when nobody reads any more: the model is given back after this
            for event in said_until_first(events, partial(reading_text, self.engine)):
                view.feed(event.text)
        view.end()
        self.n_answers += 1
        self._keep()
        if self.depth_map:
            draw_reply(self.depth_map, self.conversation)
        summary = self.conversation.last.summary
        if summary is None:
            return
        if summary.finish_reason == "interrupted":
            if not self.reader.interactive:
                raise Interrupted("stopped")
            said = self.conversation.last.text
            out.talk("(stopped)" if said else f"(stopped before the first word: {when_stopped})")
        if self.verbose:
            out.talk(answer_line(summary))
        self._watch_context(summary.finish_reason)
        if self.reader.interactive:
            out.data("")

    def _keep(self) -> None:
        try:
            said = self.keeper.note()
        except (LiquidError, OSError) as error:
            self.keeper.paused = True
            reason = getattr(error, "message", error)
            said = f"this chat is not saved any more: {reason}; /save NAME tries again"
        if said:
            out.warn(said)

    def _watch_context(self, reason: str) -> None:
        n_ctx = self.engine.info.n_ctx
        used = self.conversation.n_used() / n_ctx
        if reason == "context":
            out.warn(f"the context of {n_ctx} tokens is full, the answer stops here: /clear or /undo makes room")
        for mark in _NEARLY_FULL:
            if used >= mark > self._warned and reason != "context":
                out.warn(f"{used:.0%} of the context of {n_ctx} tokens is used: /clear, or start with a larger -c N")
                break
        self._warned = max((mark for mark in _NEARLY_FULL if used >= mark), default=0.0)
