"""A vocabulary under construction: one slot per row of the embedding, each with text, type and score.

Knows token types and what fills empty slots. Does not know tokenizer files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFValueType as Type
from gguf import TokenType

from liquidcli.errors import IntegrityError

from . import fields
from .fields import Field

_CONTROL_WORDS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_CONTROL_MARKS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


@dataclass
class Vocab:
    size: int
    blank_score: float = 0.0
    tokens: list[str | bytes | None] = field(default_factory=list)
    types: list[TokenType] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = [None] * self.size
        self.types = [TokenType.UNUSED] * self.size
        self.scores = [self.blank_score] * self.size

    def put(self, number: Any, text: str | bytes, kind: TokenType, score: float = 0.0) -> None:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < self.size:
            raise IntegrityError(f"token {text!r:.60} has the number {number!r:.40}, the model has {self.size} tokens")
        self.tokens[number], self.types[number], self.scores[number] = text, kind, score

    def is_blank(self, number: int) -> bool:
        return number >= self.size or self.tokens[number] is None

    def put_base(self, vocab: Any, kind_of: Any = lambda text: TokenType.NORMAL) -> None:
        """tokenizer.json's `model.vocab`."""
        if not isinstance(vocab, dict) or not vocab:
            raise IntegrityError("tokenizer.json has no model.vocab")
        for text, number in vocab.items():
            before = self.tokens[number] if isinstance(number, int) and 0 <= number < self.size else None
            if before is not None:
                raise IntegrityError(f"tokenizer.json gives the number {number} to {before!r:.60} and to {text!r:.60}")
            self.put(number, text, kind_of(text))

    def put_added(self, token: dict[str, Any], score: float = 0.0) -> None:
        """An added token: control if it is special or looks it, else text that users may type."""
        text = token["content"]
        if token.get("special") or looks_special(text):
            self.put(token["id"], text, TokenType.CONTROL, score)
        else:
            self.put(token["id"], text.replace("\u2581", " "), TokenType.USER_DEFINED, score)
        if any(token.get(side) for side in ("lstrip", "rstrip", "single_word")):
            self.warnings.append(f"the added token {text!r:.60} strips its surroundings, which llama.cpp does not do")

    def fields(self, *, with_scores: bool) -> list[Field]:
        texts = [f"[PAD{i}]" if text is None else text for i, text in enumerate(self.tokens)]
        found = [fields.array("tokenizer.ggml.tokens", texts, Type.STRING)]
        if with_scores:
            found.append(fields.array("tokenizer.ggml.scores", self.scores, Type.FLOAT32))
        return [*found, fields.array("tokenizer.ggml.token_type", [int(kind) for kind in self.types], Type.INT32)]


def looks_special(text: str) -> bool:
    """Tokens that some checkpoints forget to mark."""
    marked = any(text.startswith(begin) and text.endswith(end) for begin, end in _CONTROL_MARKS)
    return marked or text in _CONTROL_WORDS
