"""SentencePiece tokens back to files: tokenizer.model, which loses nothing, and a tokenizer.json that says the same.

Knows the protobuf's fields and how merges follow from scores. Knows nothing of byte-level BPE.
"""

from __future__ import annotations

import struct
from typing import Any

from gguf import TokenType

from ..sentencepiece import MODEL_BPE, SPACE
from .bpe import added_tokens, around
from .vocab import Words

# ref: sentencepiece_model.proto
_PIECE_TYPES = {
    TokenType.UNKNOWN: 2, TokenType.CONTROL: 3, TokenType.USER_DEFINED: 4, TokenType.UNUSED: 5, TokenType.BYTE: 6
}  # fmt: skip
_MODEL_TYPE, _VOCAB_SIZE, _BYTE_FALLBACK = 3, 4, 35
_ID_FIELDS = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}  # number, word
_N_BYTES = 256


def sentencepiece_model(words: Words) -> bytes:
    end = len(words.tokens)
    while end and words.is_padding(end - 1):
        end -= 1
    pieces = b"".join(_bytes(1, _piece(words, number)) for number in range(end))
    trainer = _number(_MODEL_TYPE, MODEL_BPE) + _number(_VOCAB_SIZE, end) + _number(_BYTE_FALLBACK, _has_bytes(words))
    for kind, (number_field, word_field) in _ID_FIELDS.items():
        number = words.ids.get(kind, -1)
        trainer += _number(number_field, number)
        if number >= 0:
            trainer += _bytes(word_field, words.tokens[number].encode())
    # name, add_dummy_prefix, remove_extra_whitespaces
    normalizer = _bytes(1, b"identity") + _number(3, words.adds_space) + _number(4, 0)
    return pieces + _bytes(2, trainer) + _bytes(3, normalizer)


def _has_bytes(words: Words) -> bool:
    return words.types.count(TokenType.BYTE) == _N_BYTES


def _piece(words: Words, number: int) -> bytes:
    kind = TokenType.UNKNOWN if number == words.ids.get("unk") else words.types[number]
    text = words.tokens[number]
    if kind == TokenType.USER_DEFINED:
        text = text.replace(" ", SPACE)
    score = _varint(2 << 3 | 5) + struct.pack("<f", words.scores[number])
    return _bytes(1, text.encode()) + score + _number(3, _PIECE_TYPES.get(kind, 1))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def sentencepiece_json(words: Words) -> dict[str, Any]:
    unknown = words.ids.get("unk")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
    decoders.append({"type": "Fuse"})
    if words.adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    steps = [{"type": "Prepend", "prepend": SPACE}, replace]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if unknown is None else words.tokens[unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _has_bytes(words),
        "ignore_merges": False,
        "vocab": {word: number for number, word in enumerate(words.tokens) if not words.is_padding(number)},
        "merges": _merges(words),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(words),
        "normalizer": {"type": "Sequence", "normalizers": steps} if words.adds_space else replace,
        "pre_tokenizer": None,
        "post_processor": around(words),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges(words: Words) -> list[list[str]]:
    """Every pair of tokens that makes a token, the best score first: what llama.cpp merges by."""
    numbers = {word: number for number, word in enumerate(words.tokens) if words.types[number] == TokenType.NORMAL}
    found = []
    for word, number in numbers.items():
        for cut in range(1, len(word)):
            left, right = numbers.get(word[:cut]), numbers.get(word[cut:])
            if left is not None and right is not None:
                found.append((-words.scores[number], number, left, right))
    found.sort()
    return [[words.tokens[left], words.tokens[right]] for _, _, left, right in found]
