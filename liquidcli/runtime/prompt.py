"""Rendered chat text to tokens, such that only the template speaks in special tokens.

What people and models say may spell a special token (`<|im_end|>`); such spellings are marked before the template is
rendered, and come out as the ordinary text they are. Knows vocabularies. Does not know conversations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .template import Message

if TYPE_CHECKING:
    from ..llama.model import Model

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: never part of a text that is exchanged
_MARKS = re.compile(f"([{OPEN}{CLOSE}])")
_NEVER = re.compile(r"(?!)")


class PromptTokenizer:
    """Marks, unmarks and tokenizes for one vocabulary and one template."""

    def __init__(self, model: Model, template: str) -> None:
        self._model = model
        control = model.control_texts
        structural = [text for text in model.user_defined_texts if text in template and not text.isspace()]
        self._control = _any_of(control)
        self._structural = _any_of([*control, *structural])
        self._longest = max(map(len, [*control, *structural]), default=0)
        self._bos_text = model.piece(model.bos, special=True).decode("utf-8", "replace") if model.add_bos else ""

    def guarded(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with every spelling of a special token marked; a model's own words may use its own markup."""
        return [message | {"content": self.guard(message["content"], message["role"])} for message in messages]

    def guard(self, content: str, role: str) -> str:
        pattern = self._control if role == "assistant" else self._structural
        return pattern.sub(lambda found: f"{OPEN}{found[0]}{CLOSE}", _MARKS.sub("", content))

    def tokens(self, rendered: str, *, add_special: bool = True) -> list[int]:
        """Special tokens outside of marks, plain text within. A BOS the template wrote is not doubled."""
        if add_special and self._bos_text:
            rendered = rendered.removeprefix(self._bos_text)
        tokens: list[int] = []
        for i, (text, literal) in enumerate(self._segments(rendered)):
            first = add_special and i == 0
            pieces = (
                [text[:1], text[1:]] if literal else [text]
            )  # a user-defined token is only broken by breaking its text
            for piece in filter(None, pieces):
                tokens += self._model.tokenize(piece, add_special=first, parse_special=not literal)
                first = False
        if not tokens and add_special:
            tokens = self._model.tokenize("", add_special=True, parse_special=False)
        return tokens

    def begins_special(self, rendered: str) -> bool:
        """Whether the text begins with a special token, so that tokens before it stay as they are."""
        return bool(self._structural.match(rendered))

    def _segments(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """(text, literal): from an opening mark to the closing one, or as far as a special token can reach."""
        literal = False
        for part in _MARKS.split(rendered):
            if part in (OPEN, CLOSE):
                literal = part == OPEN
                continue
            reach = self._longest if literal else 0
            if part[:reach]:
                yield part[:reach], True
            if part[reach:]:
                yield part[reach:], False
            literal = False


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    unique = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, unique))) if unique else _NEVER
