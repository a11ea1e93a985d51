"""Do two models answer alike? The base's greedy answers to short questions, and where another would say otherwise.

A model is fed the base's own answer: it would have given that answer exactly when it finds every token of it likeliest,
and how many it finds so tells how far it is from that. Knows prompts and shares; the bundled prompts are our own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .depth import DepthPolicy

if TYPE_CHECKING:
    from .engine import Engine

BUNDLED_PROMPTS = Path(__file__).with_name("agreement.txt")
_KIND = "other"


@dataclass(frozen=True)
class Prompt:
    kind: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What the base said."""

    kind: str
    prompt: list[int]
    tokens: list[int]  # with the one that ended it, if it ended


def read_prompts(text: str) -> list[Prompt]:
    """One a line, after a word for its kind and a tab if it has one."""
    prompts = []
    for line in filter(str.strip, text.splitlines()):
        kind, tab, said = line.partition("\t")
        prompts.append(Prompt(kind.strip() or _KIND, said) if tab else Prompt(_KIND, line))
    if not prompts:
        raise UsageError("there are no prompts to answer", hint="one prompt a line, or leave --prompts out")
    return prompts


def answers_of(path: Path, prompts: Sequence[Prompt], n_tokens: int, **settings: Any) -> list[Answer]:
    """Of the base, at full depth; at most `n_tokens` each. `settings` go to Engine.load."""
    from .engine import Engine

    with Engine.load(path, n_ctx=0, **settings) as engine:
        engine.set_depth(DepthPolicy.parse("full"))
        asked = list(chat_tokens(engine, (prompt.text for prompt in prompts)))
        return [Answer(p.kind, ids, _greedy(engine, ids, n_tokens)) for p, ids in zip(prompts, asked, strict=True)]


def chat_tokens(engine: Engine, questions: Iterable[str]) -> Iterator[list[int]]:
    """Each as a chat would begin with it; as plain text where the model has no template."""
    from .chat import Conversation

    with contextlib.closing(Conversation(engine)) as conversation:
        for question in questions:
            conversation.clear()
            conversation.turns.append({"role": "user", "content": question})
            yield conversation.prompt_tokens()


def _greedy(engine: Engine, prompt: list[int], n_tokens: int) -> list[int]:
    engine.clear()
    said: list[int] = []
    logits = engine.decode(prompt)
    while True:
        said.append(int(logits[-1].argmax()))
        if len(said) >= n_tokens or engine.model.is_eog(said[-1]):
            return said
        logits = engine.decode(said[-1:])


def agreement(path: Path, answers: Sequence[Answer], policy: DepthPolicy, **settings: Any) -> dict[str, Any]:
    """Shares of tokens and of whole answers that are the base's, over all prompts and by kind."""
    from .engine import Engine

    with Engine.load(path, n_ctx=0, **settings) as engine:
        engine.set_depth(policy)
        same = [_same(engine, answer) for answer in answers]
    found = _shares(same)
    kinds = dict.fromkeys(answer.kind for answer in answers)
    found["kinds"] = {
        kind: _shares([s for s, a in zip(same, answers, strict=True) if a.kind == kind]) for kind in kinds
    }
    return found


def _same(engine: Engine, answer: Answer) -> np.ndarray:  # [n_tokens] bool
    engine.clear()
    fed = [*answer.prompt, *answer.tokens[:-1]]
    first = len(answer.prompt) - 1
    logits = engine.decode(fed, logits=[i >= first for i in range(len(fed))])
    return logits.argmax(axis=1) == np.asarray(answer.tokens)


def _shares(same: Sequence[np.ndarray]) -> dict[str, Any]:
    return {
        "n_prompts": len(same),
        "n_tokens": int(sum(map(len, same))),
        "same_token_p": float(np.concatenate(same).mean()),
        "same_answer_p": float(np.mean([part.all() for part in same])),
    }
