"""Byte-level BPE (GPT-2's way) from tokenizer.json: tokens, merges and the pre-tokenizer's name.

Refuses what llama.cpp would compute differently. Knows neither special-token roles nor SentencePiece.
"""

from __future__ import annotations

from typing import Any

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError, LiquidError

from . import fields
from .checkpoint import Checkpoint
from .fields import Field
from .pretokenizers import identify
from .special_tokens import added_tokens, tokens_listed_elsewhere
from .vocab import Vocab

_MUST_BE_UNSET = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def bpe_fields(checkpoint: Checkpoint, tokenizer: dict[str, Any], n_vocab: int) -> tuple[list[Field], list[str]]:
    model = tokenizer["model"]
    for name in _MUST_BE_UNSET:
        if model.get(name):
            raise LiquidError(f"tokenizer.json sets {name} to {model[name]!r:.60}, which llama.cpp does not do")
    pre = identify(tokenizer)
    vocab = Vocab(n_vocab)
    vocab.put_base(model.get("vocab"))
    for token in added_tokens(tokenizer):
        vocab.put_added(token)
    for token in tokens_listed_elsewhere(checkpoint):
        if vocab.is_blank(token["id"]):
            vocab.put_added(token)
    if bool(model.get("ignore_merges")) != pre.ignores_merges:
        vocab.warnings.append(
            f"ignore_merges is {bool(model.get('ignore_merges'))} in tokenizer.json, llama.cpp's {pre.name} "
            f"has it {pre.ignores_merges}: rare words may be split differently"
        )
    merges = read_merges(model.get("merges"), model["vocab"])
    found = [fields.string("tokenizer.ggml.model", "gpt2"), fields.string("tokenizer.ggml.pre", pre.name)]
    found += vocab.fields(with_scores=False)
    # upstream stores a space inside a merge as the byte-level letter for it
    texts = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
    return [*found, fields.array("tokenizer.ggml.merges", texts, Type.STRING)], vocab.warnings


def read_merges(merges: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs in order of rank, from either spelling; each part and each result is a token."""
    if not isinstance(merges, list) or not merges:
        raise IntegrityError("tokenizer.json has no model.merges")
    pairs = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise IntegrityError(f"tokenizer.json: merge {rank} is {merge!r:.60}, two texts were expected")
        if unknown := [text for text in (*pair, pair[0] + pair[1]) if text not in vocab]:
            raise IntegrityError(f"tokenizer.json: merge {rank} needs the token {unknown[0]!r:.60}, which is not there")
        pairs.append((pair[0], pair[1]))
    return pairs
