"""llama.cpp's own sampler chain, in llama.cpp's own order.

Knows which samplers there are and what switches each off. Takes plain numbers; their defaults live with the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

from . import library
from .context import Context
from .grammar import compiled

_MIN_KEEP = 0


class SamplerChain:
    """Biases, a grammar, penalties; then greedy at temperature 0, else top-k, top-p, min-p, temperature and a draw."""

    def __init__(
        self,
        context: Context,
        *,
        temp: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        repeat_last_n: int,
        frequency_penalty: float,
        presence_penalty: float,
        seed: int,
        logit_bias: Mapping[int, float],
        grammar: str = "",
    ) -> None:
        self._lib = library.load()
        self._context = context
        self._chain = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        n_vocab = context.model.n_vocab
        if logit_bias:
            entries = [self._lib.llama_logit_bias(token, bias) for token, bias in logit_bias.items()]
            array = (self._lib.llama_logit_bias * len(entries))(*entries)
            self._add(self._lib.llama_sampler_init_logit_bias(n_vocab, len(entries), array))
        if grammar:
            self._add(compiled(context.model, grammar))
        self._penalties = self._lib.llama_sampler_init_penalties(
            n_vocab, repeat_last_n, repeat_penalty, frequency_penalty, presence_penalty
        )
        self._add(self._penalties)
        if temp <= 0:
            self._add(self._lib.llama_sampler_init_greedy())
            return
        self._add(self._lib.llama_sampler_init_top_k(top_k))
        self._add(self._lib.llama_sampler_init_top_p(top_p, _MIN_KEEP))
        self._add(self._lib.llama_sampler_init_min_p(min_p, _MIN_KEEP))
        self._add(self._lib.llama_sampler_init_temp(temp))
        self._add(self._lib.llama_sampler_init_dist(ctypes.c_uint32(seed)))

    def _add(self, sampler: Any) -> None:
        self._lib.llama_sampler_chain_add(self._chain, sampler)

    def accept(self, tokens: Iterable[int]) -> None:
        """Tokens that count for the penalties though they were not sampled: the end of the prompt."""
        for token in tokens:
            self._lib.llama_sampler_accept(self._penalties, token)

    def sample(self) -> int:
        """Draw from the last logits of the context, and accept the token drawn."""
        return self._lib.llama_sampler_sample(self._chain, self._context.pointer, -1)

    def close(self) -> None:
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
