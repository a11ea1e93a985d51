'''Where turns come from: a terminal with history and multi-line editing, or the lines of a pipe.

A turn goes on over lines while a `"""` block is open or a line ends with a backslash. Knows nothing of models
or commands.
'''

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Protocol

from ..errors import LiquidError
from .completion import Source, completer
from .stream import sanitize

FENCE = '"""'
PROMPT, CONTINUATION = ">>> ", "... "
_MAX_TURN_CHARS = 1 << 22


class Reader(Protocol):
    """Turns, one by one. `read` returns None at the end and raises KeyboardInterrupt on Ctrl-C."""

    interactive: bool

    def read(self, prefilled: str = "", status: str = "") -> str | None: ...

    def keep_history(self, keep: bool) -> None: ...

    def session(self) -> AbstractContextManager: ...


def is_open(text: str) -> bool:
    """Does what was typed so far ask for another line?"""
    stripped = text.lstrip()
    if stripped.startswith(FENCE):
        return FENCE not in stripped[len(FENCE) :]
    return text.endswith("\\") and not text.endswith("\\\\")


def unfold(text: str) -> str:
    """The turn without the marks that held its lines together."""
    stripped = text.strip()
    if stripped.startswith(FENCE):
        before, _, after = stripped[len(FENCE) :].partition(FENCE)
        return (before.strip("\n") + after).strip()
    return text.replace("\\\n", "\n").strip()


class PipeReader:
    """Lines of a stream that is no terminal."""

    interactive = False

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdin

    def read(self, _prefilled: str = "", _status: str = "") -> str | None:
        lines: list[str] = []
        while line := self._stream.readline(_MAX_TURN_CHARS):
            lines.append(line.rstrip("\n"))
            if not is_open(text := "\n".join(lines)):
                return unfold(text)
            if len(text) > _MAX_TURN_CHARS:
                raise LiquidError(f"a turn of more than {_MAX_TURN_CHARS} characters")
        return unfold("\n".join(lines)) if lines else None

    def keep_history(self, keep: bool) -> None:
        pass

    def session(self) -> AbstractContextManager:
        return nullcontext()


class TerminalReader:
    """prompt_toolkit: history on disk, completion of commands, bracketed paste, Ctrl-J for a new line."""

    interactive = True

    def __init__(self, history: Path, words: Sequence[str], sources: Mapping[str, Source]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.styles import Style

        self._on_disk = _history(history) if _writable(history) else InMemoryHistory()
        self._in_memory = InMemoryHistory()
        self._session: PromptSession = PromptSession(
            history=self._on_disk,
            completer=completer(words, sources),
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
            complete_while_typing=False,
            enable_open_in_editor=True,
            multiline=True,
            key_bindings=_key_bindings(),
            prompt_continuation=lambda width, _line, _wrapped: CONTINUATION.ljust(width),
        )

    def read(self, prefilled: str = "", status: str = "") -> str | None:
        try:
            return unfold(self._session.prompt(PROMPT, default=prefilled, bottom_toolbar=sanitize(status)))
        except EOFError:
            return None

    def keep_history(self, keep: bool) -> None:
        self._session.history = self._session.default_buffer.history = self._on_disk if keep else self._in_memory

    def session(self) -> AbstractContextManager:
        return _typing_ahead()


def _writable(history: Path) -> bool:
    """What was typed is nobody else's to read."""
    try:
        history.touch(mode=0o600)
        return history.is_file() and os.access(history, os.W_OK)
    except OSError:
        return False


def _history(path: Path):
    """Lines typed before; a line that cannot be written, for want of room, is remembered until the end of this chat."""
    from prompt_toolkit.history import FileHistory

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    return History(str(path))


@contextmanager
def _typing_ahead() -> Iterator[None]:
    """What is typed during an answer waits unseen, and Enter stays Enter, which the terminal would make a Ctrl-J of."""
    try:
        import termios
    except ImportError:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    after = termios.tcgetattr(sys.stdin)
    after[0] &= ~termios.ICRNL
    after[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, after)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _key_bindings():
    from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("c-j")
    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab")
    def _(event) -> None:
        """At once, where others let a task do it: Enter right behind Tab takes the whole word."""
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
            return
        found = list(buffer.completer.get_completions(buffer.document, CompleteEvent(completion_requested=True)))
        buffer.insert_text(get_common_complete_suffix(buffer.document, found))
        if len(found) > 1:
            buffer.start_completion()

    @keys.add("c-g")
    def _(event) -> None:
        event.current_buffer.open_in_editor()

    return keys
