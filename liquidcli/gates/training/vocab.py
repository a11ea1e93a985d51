"""A base's tokenizer and chat template for training rows, as the runtime uses them, with the weights left on the disk.

Knows texts and token ids. Knows nothing of tensors.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ...gguf_file import open_gguf
from ...llama.model import Model
from ...runtime.prompt import PromptTokenizer
from ...runtime.template import ChatFormat, chat_format


class Vocabulary:
    """The rows that documents and conversations make, first token to last. The file is opened at the first use."""

    def __init__(self, path: Path, *, weights: bool = False) -> None:
        self.path, self.weights = path, weights

    @functools.cached_property
    def model(self) -> Model:
        return Model(self.path, vocab_only=not self.weights)

    @functools.cached_property
    def _format(self) -> ChatFormat:
        with open_gguf(self.path) as f:
            template = f.metadata.get("tokenizer.chat_template")
        return chat_format(self.model, template if isinstance(template, str) else None)

    @functools.cached_property
    def _prompts(self) -> PromptTokenizer:
        return PromptTokenizer(self.model, self._format.source)

    def opening(self) -> list[int]:
        """What every row begins with: BOS where the vocabulary wants one."""
        return [self.model.bos] if self.model.add_bos else []

    def text(self, text: str) -> list[int]:
        """A piece of a text, without what a row begins with. What spells a special token is ordinary text."""
        return self.model.tokenize(text, add_special=False, parse_special=False)

    def document(self, text: str) -> list[int]:
        """A text that is a row of its own."""
        return self.opening() + self.text(text)

    def chat(self, question: str, answer: str | None = None) -> list[int]:
        """`question`, ready to be answered, or with its `answer`, as `liquid chat` reads them."""
        turns = [{"role": "user", "content": question}]
        turns += [] if answer is None else [{"role": "assistant", "content": answer}]
        rendered = self._format.render(self._prompts.guarded(turns), add_generation_prompt=answer is None)
        return self._prompts.tokens(rendered)

    def spelled(self, tokens: list[int]) -> str:
        """The text of `tokens`, special ones left out."""
        return b"".join(map(self.model.piece, tokens)).decode(errors="replace")

    def close(self) -> None:
        if "_format" in self.__dict__:
            self._format.close()
        if "model" in self.__dict__:
            self.model.close()
