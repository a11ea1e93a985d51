"""Byte-level BPE back to tokenizer.json: vocabulary, merges, the pre-tokenizer's structure, added tokens.

Knows how the tokenizers library numbers what stands only among the added tokens.
"""

from __future__ import annotations

from typing import Any

from gguf import TokenType

from ..pretokenizers import as_json
from .vocab import Words

_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def bpe_json(words: Words) -> dict[str, Any]:
    assert words.pre is not None  # read_words sees to it
    normalizer = {"type": words.pre.normalizers[0]} if words.pre.normalizers else None
    template = around(words)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": words.pre.ignores_merges,
        "vocab": {words.tokens[number]: number for number in _of_the_model(words)},
        "merges": [list(pair) for pair in words.merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(words),
        "normalizer": normalizer,
        "pre_tokenizer": as_json(words.pre.steps),
        "post_processor": {"type": "Sequence", "processors": [_LEVEL, template]} if template else None,
        "decoder": {**_LEVEL, "add_prefix_space": True},
        "model": model,
    }


def _of_the_model(words: Words) -> list[int]:
    """Numbers of the model's own vocabulary. Added tokens stand beside it only where they go on counting without a gap:
    the library numbers them itself."""
    numbers = range(len(words.tokens))
    own = [number for number in numbers if not words.is_padding(number) and not words.is_added(number)]
    end = max(own, default=-1) + 1
    filled = [number for number in numbers if not words.is_padding(number)]
    in_front = [number for number in filled if number < end]
    behind = [number for number in filled if number >= end]
    counts_on = len(in_front) == end and behind == list(range(end, end + len(behind)))
    return in_front if counts_on else filled


def added_tokens(words: Words) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "content": words.tokens[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": words.types[number] != TokenType.USER_DEFINED,
        }
        for number in range(len(words.tokens))
        if words.is_added(number)
    ]


def around(words: Words) -> dict[str, Any] | None:
    """The post-processor that puts bos and eos around a text, if any is."""
    first = [_special(words, "bos")] if words.added["bos"] else []
    last = [_special(words, "eos")] if words.added["eos"] else []
    if not first and not last:
        return None
    used = {kind: words.tokens[words.ids[kind]] for kind in ("bos", "eos") if words.added[kind]}
    second = [{**piece, "SpecialToken": {**piece["SpecialToken"], "type_id": 1}} for piece in first]
    return {
        "type": "TemplateProcessing",
        "single": [*first, _sequence("A", 0), *last],
        "pair": [*first, _sequence("A", 0), *last, *second, _sequence("B", 1), *last],
        "special_tokens": {
            word: {"id": word, "ids": [words.ids[kind]], "tokens": [word]} for kind, word in used.items()
        },
    }


def _special(words: Words, kind: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": words.tokens[words.ids[kind]], "type_id": 0}}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
