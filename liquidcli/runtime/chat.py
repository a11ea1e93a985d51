"""A conversation with one model: turns, the prompt they make, the reply under way.

Knows messages and which tokens are already in the memory. Does not know terminals or commands.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import LiquidError
from .engine import Engine, common_length
from .events import Event, Likelihood, Summary
from .prompt import PromptTokenizer
from .sampling import SamplingParams
from .template import ChatFormat, Message, PlainFormat, chat_format


@dataclass
class ReplySettings:
    """How replies are made; changed in place by the user of a conversation."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    grammar: str = ""  # GBNF that answers keep to
    n_logprobs: int = -1  # likeliest tokens told with each token; -1: not even its own


@dataclass
class Reply:
    """The last reply: its text, the depth of its tokens, how it ended."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # text per token
    layers: list[np.ndarray] = field(default_factory=list)  # per token [n_layer] bool
    likelihoods: list[Likelihood] = field(default_factory=list)  # per token, where asked for
    summary: Summary | None = None
    prompt: list[int] = field(default_factory=list)  # what it answers

    def ended(self) -> Summary:
        """The summary of a reply whose events were all taken."""
        if self.summary is None:
            raise RuntimeError("the reply has not ended yet")
        return self.summary


class Conversation:
    """Turns of one chat. `ask` adds one; `regenerate`, `undo` and `clear` take back."""

    def __init__(
        self,
        engine: Engine,
        settings: ReplySettings | None = None,
        *,
        system: str | None = None,
        template: str | None = None,
        plain: bool = False,
    ) -> None:
        self.engine = engine
        self.settings = settings or ReplySettings()
        self.system = system
        self.format: ChatFormat = chat_format(engine.model, engine.info.chat_template, template, plain=plain)
        self.turns: list[Message] = []
        self.last = Reply()
        self._tokenizer = PromptTokenizer(engine.model, self.format.source)
        self._taken_back = False  # turns, since the last reply
        self._known: list[tuple[str, list[int]]] = []  # rendered texts and their tokens, as the model read or said them

    @property
    def is_chat(self) -> bool:
        """False for a model without a template: it goes on with the text instead of answering."""
        return not isinstance(self.format, PlainFormat)

    def close(self) -> None:
        self.format.close()

    def ask(self, text: str) -> Generator[Event]:
        """Events of the reply. Afterwards, also after an interruption, the turn and what was said are in `turns`."""
        before = list(self.turns)
        self.turns.append({"role": "user", "content": text})
        return self._reply(before)

    def regenerate(self) -> Generator[Event] | None:
        """The last reply once more, which stays where no other one comes; None when there is nothing to repeat."""
        before = list(self.turns)
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return self._reply(before) if self.turns else None

    def question(self) -> str | None:
        """What was asked last."""
        return next((turn["content"] for turn in reversed(self.turns) if turn["role"] == "user"), None)

    def undo(self) -> str | None:
        """Take back the last turn and its reply; what had been asked, or None."""
        while self.turns:
            message = self.turns.pop()
            if message["role"] == "user":
                self._taken_back = True
                return message["content"]
        return None

    def n_used(self) -> int:
        """Tokens of the turns there are, in a memory that may still hold what was taken back, or have to read anew."""
        held = self.engine.held()
        if held and not self._taken_back:
            return len(held)
        if not self.turns:
            return 0
        try:
            rendered = self.format.render(self._tokenizer.guarded(self.messages()), add_generation_prompt=False)
        except LiquidError:  # a template may refuse such turns
            return len(held)
        tokens = self._continued(rendered) or self._tokenizer.tokens(rendered)
        return common_length(held, tokens) if held else len(tokens)

    def clear(self) -> None:
        self.turns.clear()
        self._taken_back = False
        self.last = Reply()
        self._known = []

    def read_so_far(self) -> dict[str, Any]:
        """The prompt as the model read and said it, for `recall`: text, tokens, and where earlier ones ended."""
        if not self._known:
            return {}
        text, tokens = self._known[-1]
        whole = [(t, n) for t, n in self._known[:-1] if text.startswith(t) and tokens[: len(n)] == n]
        return {"text": text, "tokens": tokens, "ends": [[len(t), len(n)] for t, n in whole]}

    def recall(self, turns: Sequence[Message], read: Mapping[str, Any]) -> None:
        """Take up a conversation from elsewhere. What was read is believed only as far as it fits the turns."""
        self.clear()
        self.turns = [dict(turn) for turn in turns]
        text, tokens = read.get("text"), read.get("tokens")
        if isinstance(text, str) and tokens and _all_below(tokens, self.engine.info.n_vocab):
            ends = [end for end in read.get("ends", []) if _all_below(end, len(text) + 1) and len(end) == 2]
            self._known = [*((text[:at], tokens[:n]) for at, n in ends), (text, tokens)]

    def messages(self) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def prompt_tokens(self) -> list[int]:
        """Tokens of everything said, up to where the model's next reply begins."""
        rendered = self.format.render(self._tokenizer.guarded(self.messages()))
        tokens = self._continued(rendered) or self._tokenizer.tokens(rendered)
        self._known = [known for known in self._known if rendered.startswith(known[0])] + [(rendered, tokens)]
        return tokens

    def _continued(self, rendered: str) -> list[int]:
        """What is known already, as it was said, and only the rest anew; empty if nothing known fits."""
        for text, tokens in reversed(self._known):
            rest = rendered[len(text) :]
            if rendered.startswith(text) and (not rest or self._tokenizer.begins_special(rest)):
                return [*tokens, *self._tokenizer.tokens(rest, add_special=False)]
        return []

    def _reply(self, before: list[Message]) -> Generator[Event]:
        """`before`: the turns as they are again where nothing is said."""
        self.last, self._taken_back = Reply(), False
        reply = self.last
        try:
            tokens = reply.prompt = self.prompt_tokens()
            settings = self.settings
            for event in self.engine.generate(
                tokens, settings.sampling, max_tokens=settings.max_tokens, stop=settings.stop,
                ignore_eos=settings.ignore_eos, grammar=settings.grammar,
                n_logprobs=settings.n_logprobs,
            ):  # fmt: skip
                take(reply, event)
                yield event
        finally:
            stopped = reply.summary is None or reply.summary.finish_reason == "interrupted"
            if reply.tokens or not stopped:
                self._keep(reply)
            else:
                self.turns[:] = before

    def _keep(self, reply: Reply) -> None:
        self.turns.append({"role": "assistant", "content": reply.text})
        rendered, tokens = self._known[-1]
        spoken = b"".join(map(self.engine.detokenize_piece, reply.tokens)).decode("utf-8", "replace")
        if spoken == reply.text:  # else it was cut at a stop string, and the tokens say more than the text
            said = rendered + self._tokenizer.guard(reply.text, "assistant")
            self._known.append((said, [*tokens, *reply.tokens]))


def _all_below(numbers: object, end: int) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < end for n in numbers)


def take(reply: Reply, event: Event) -> None:
    """An event as a part of its reply."""
    reply.text += event.text
    if event.token is not None and event.layers is not None:
        reply.tokens.append(event.token)
        reply.pieces.append(event.text)
        reply.layers.append(event.layers)
        reply.likelihoods += [event.likelihood] if event.likelihood else []
    elif event.text and reply.pieces:
        reply.pieces[-1] += event.text
    reply.summary = event.summary or reply.summary
