"""One answer under way: sample, decode, stop, count.

Knows when an answer is over. Works on an `Engine`, which owns the memory and the depth.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..llama.interrupt import ctrl_c
from ..llama.sampler import SamplerChain
from .depth import DepthStats
from .events import Event, Likelihood, Summary, Timings, likelihood
from .sampling import SamplingParams, StopStrings

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True)
class Request:
    """What is asked of a generation."""

    tokens: list[int]
    sampling: SamplingParams
    max_tokens: int = -1  # -1: until the model stops or the context is full
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    grammar: str = ""  # GBNF
    n_logprobs: int = -1  # likeliest tokens told with each one; -1: not even its own


class Generation:
    """Yields an event per token and a last one with the summary."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine, self._request = engine, request
        self._stops = StopStrings(request.stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._n_reused = self._n_predicted = 0
        self._prompt_ms = self._predicted_ms = 0.0

    def events(self) -> Iterator[Event]:
        engine, total = self._engine, self._engine.info.n_layer
        before = engine.depth_stats()
        engine.set_trace(True)
        try:
            understood = self._read_prompt()
            reason = (yield from self._tokens()) if understood else "interrupted"
        finally:
            engine.set_trace(False)
        if tail := self._tail():
            yield Event(text=tail, layers_total=total)
        yield Event(layers_total=total, summary=self._summary(reason, before))

    def _read_prompt(self) -> bool:
        tokens = self._request.tokens
        self._n_reused = self._engine.reuse(tokens)
        started = time.perf_counter()
        understood = self._engine.extend(tokens[self._n_reused :])
        self._prompt_ms = _ms_since(started)
        return understood

    def _tokens(self) -> Generator[Event, None, str]:
        """Yields one event per token; its value is why it ended."""
        engine = self._engine
        chain = self._chain()
        started = time.perf_counter()
        try:
            while not (reason := self._over()):
                token, layers = chain.sample(), engine.last_layers()
                if self._ends(token):
                    return "stop"
                likely = self._likelihood(token)
                self._n_predicted += 1
                self._predicted_ms = _ms_since(started)
                text = self._stops.feed(self._decoder.decode(engine.detokenize_piece(token)))
                yield Event(text, token, int(layers.sum()), engine.info.n_layer, layers, likelihood=likely)
                if not self._over() and not engine.extend([token]):
                    return "interrupted"
            return reason
        finally:
            chain.close()

    def _likelihood(self, token: int) -> Likelihood | None:
        if self._request.n_logprobs < 0:
            return None
        return likelihood(self._engine.context.logits(1)[0], token, self._request.n_logprobs)

    def _ends(self, token: int) -> bool:
        wanted = self._request.grammar or not self._request.ignore_eos
        return bool(wanted) and self._engine.model.is_eog(token)

    def _over(self) -> str:
        """Why nothing more comes; empty while something does."""
        if self._stops.hit:
            return "stop"
        if ctrl_c.pressed:
            return "interrupted"
        if 0 <= self._request.max_tokens <= self._n_predicted:
            return "length"
        return "" if self._engine.room_left() else "context"

    def _chain(self) -> SamplerChain:
        engine, params = self._engine, self._request.sampling
        bias = dict(params.logit_bias)
        if unknown := [token for token in bias if token >= engine.info.n_vocab]:
            raise UsageError(f"the logit bias names token {unknown[0]}, the vocabulary has {engine.info.n_vocab}")
        if self._request.ignore_eos and not self._request.grammar:  # a grammar that is through allows nothing else
            bias |= dict.fromkeys(engine.model.eog_tokens, float("-inf"))
        last_n = engine.context.n_ctx if params.repeat_last_n < 0 else params.repeat_last_n
        chain = SamplerChain(
            engine.context, temp=params.temp, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p,
            repeat_penalty=params.repeat_penalty, repeat_last_n=last_n, frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty, seed=params.seed, logit_bias=bias,
            grammar=self._request.grammar,
        )  # fmt: skip
        chain.accept(self._request.tokens[-last_n:] if last_n else ())
        return chain

    def _tail(self) -> str:
        """The end of a broken character, and what was held back as the beginning of a stop string."""
        return self._stops.feed(self._decoder.decode(b"", final=True)) + self._stops.end()

    def _summary(self, reason: str, before: DepthStats) -> Summary:
        n_prompt = len(self._request.tokens)
        timings = Timings(
            n_prompt - self._n_reused, self._n_reused, self._prompt_ms, self._n_predicted, self._predicted_ms
        )
        engine = self._engine
        depth, seed = engine.depth_stats() - before, self._request.sampling.seed
        return Summary(reason, n_prompt, self._n_predicted, timings, depth, engine.policy, seed)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000
