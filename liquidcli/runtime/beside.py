"""The last answer once more at full depth, in a memory of its own, so that the conversation's stays as it is.

Knows replies and engines. Does not know how two answers are shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from ..errors import UsageError
from ..llama.context import Context
from .chat import Conversation, Reply, take
from .depth import DepthPolicy
from .engine import Engine


@contextlib.contextmanager
def beside(engine: Engine, n_ctx: int) -> Iterator[Engine]:
    """The same weights with another, smaller memory; nothing of the first one is touched."""
    context = Context(engine.model, replace(engine.context.params, n_ctx=n_ctx, n_seq=1))
    try:
        yield Engine(replace(engine.info, n_ctx=context.n_ctx), engine.model, context)
    finally:
        context.close()


def at_full_depth(conversation: Conversation) -> Reply:
    """What the model says to the same tokens, with the same seed and as many words, when every layer runs."""
    last, engine, settings = conversation.last, conversation.engine, conversation.settings
    if last.summary is None or not last.prompt:
        raise UsageError("there is no answer to compare with", hint="say something first, then /compare")
    n_answer = max(len(last.tokens), 1)
    sampling = settings.sampling.updated(seed=last.summary.seed)
    with beside(engine, len(last.prompt) + n_answer + 1) as full:
        if engine.info.gates:
            full.set_depth(DepthPolicy.parse("full"))
        reply = Reply(prompt=list(last.prompt))
        for event in full.generate(
            last.prompt, sampling, max_tokens=n_answer, stop=settings.stop, ignore_eos=settings.ignore_eos,
            grammar=settings.grammar,
        ):  # fmt: skip
            take(reply, event)
    return reply
