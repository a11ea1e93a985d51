"""The one exception tree. A message says what was found and what was expected; a hint names the next command to type.

    LiquidError            1  failed
    ├── UsageError         2  the words of the command are off
    ├── NotFoundError      3  no such model, file or tensor
    ├── NetworkError       4  network or authorisation
    ├── MemoryFitError     5  does not fit in memory
    ├── IntegrityError     6  a hash differs, a GGUF or checkpoint is broken
    ├── DiskSpaceError     7  not enough room on the disk
    └── Interrupted      130  Ctrl-C

Knows nothing of terminals: `liquidcli.cli.app` is the only handler.
"""

from __future__ import annotations

import reprlib
from typing import Any

_MOST_QUOTED = 80  # letters
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, _MOST_QUOTED, _MOST_QUOTED


def quote(said: Any) -> str:
    """What a file says, as Python spells it (so without control characters), short enough for a sentence."""
    text = _SHORT.repr(said)
    return text if len(text) <= _MOST_QUOTED else f"{text[:52]}...{text[-24:]}"


class LiquidError(Exception):
    """A failure a person can act on: one sentence, an optional hint, an exit code."""

    exit_code = 1
    usual_hint: str | None = None  # where the one who raises knows no better

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class UsageError(LiquidError):
    """The command was typed in a way that cannot be meant."""

    exit_code = 2


class PromptTooLong(UsageError):
    """What was said does not fit into the context."""


class NotFoundError(LiquidError):
    """A model, a file or a tensor that was named is not there."""

    exit_code = 3


class NetworkError(LiquidError):
    """The hub or the package index could not be reached, or refused."""

    exit_code = 4


class MemoryFitError(LiquidError):
    """The model or its context does not fit in memory."""

    exit_code = 5
    usual_hint = "a smaller context (-c N) or a smaller file of the model; liquid fit REF estimates what fits"


class IntegrityError(LiquidError):
    """A file is not what it says: broken, truncated, of another model, or with another hash."""

    exit_code = 6
    usual_hint = "fetch or make the file again; liquid verify checks those that are stored"


class DiskSpaceError(LiquidError):
    """The output would not fit on the disk; nothing was written."""

    exit_code = 7


class Interrupted(LiquidError):
    """Ctrl-C: what was half-written is gone."""

    exit_code = 130
