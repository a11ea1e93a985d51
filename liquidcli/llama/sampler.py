"""llama.cpp's own sampler chain, in llama.cpp's own order.

Knows which samplers there are and what switches each off. Takes plain numbers; their defaults live with the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import UsageError
from . import library
from .context import Context
from .grammar import compiled

_MIN_KEEP = 0


class SamplerChain:
    """Biases, penalties; then greedy at temperature 0, else top-k, top-p, min-p, temperature and a seeded draw.

    What a grammar does not allow is drawn again from what it does.
    """

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
        self._grammar = compiled(context.model, grammar) if grammar else None
        self._chain = self._lib.llama_sampler_chain_init(self._lib.llama_sampler_chain_default_params())
        n_vocab = context.model.n_vocab
        if logit_bias:
            entries = [self._lib.llama_logit_bias(token, bias) for token, bias in logit_bias.items()]
            array = (self._lib.llama_logit_bias * len(entries))(*entries)
            self._add(self._lib.llama_sampler_init_logit_bias(n_vocab, len(entries), array))
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
        if not self._grammar:
            return self._lib.llama_sampler_sample(self._chain, self._context.pointer, -1)
        logits = self._context.logits(1)[0]
        token = self._drawn(_Candidates(self._lib, logits))
        if not self._allows(token):  # only then is the whole vocabulary held against the grammar, which takes long
            allowed = _Candidates(self._lib, logits)
            self._lib.llama_sampler_apply(self._grammar, ctypes.byref(allowed.struct))
            token = self._drawn(allowed)
            if not self._allows(token):
                raise UsageError("the logit bias forbids every token that the grammar allows")
        for sampler in (self._grammar, self._chain):
            self._lib.llama_sampler_accept(sampler, token)
        return token

    def _drawn(self, candidates: _Candidates) -> int:
        self._lib.llama_sampler_apply(self._chain, ctypes.byref(candidates.struct))
        return candidates.selected()

    def _allows(self, token: int) -> bool:
        one = _Candidates(self._lib, np.zeros(1, np.float32), first=token)
        self._lib.llama_sampler_apply(self._grammar, ctypes.byref(one.struct))
        return bool(np.isfinite(one.table["logit"][0]))

    def close(self) -> None:
        if self._chain:
            self._lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar:
            self._lib.llama_sampler_free(self._grammar)
            self._grammar = None


class _Candidates:
    """A llama_token_data_array over a numpy table."""

    def __init__(self, lib: Any, logits: np.ndarray, first: int = 0) -> None:  # [n] float32, of tokens from `first` on
        self.table = np.zeros(len(logits), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self.table["id"] = np.arange(first, first + len(logits))
        self.table["logit"] = logits
        self.struct = lib.llama_token_data_array()
        kind = dict(lib.llama_token_data_array._fields_)["data"]
        self.struct.data = ctypes.cast(self.table.ctypes.data, kind)
        self.struct.size, self.struct.selected, self.struct.sorted = len(logits), -1, False

    def selected(self) -> int:
        return int(self.struct.data[self.struct.selected].id)
