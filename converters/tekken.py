"""Mistral's tekken.json as a tokenizer.json: byte sequences by rank become a vocabulary and merges.

Knows that format. What becomes of a tokenizer.json is not known here.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from liquidcli.errors import IntegrityError

FILE = "tekken.json"
# what files before version 7 do not list. ref: mistral-common
_EARLY = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_MAX_TOKENS = 1 << 24


def as_tokenizer_json(tekken: dict[str, Any]) -> dict[str, Any]:
    settings = tekken.get("config")
    settings = settings if isinstance(settings, dict) else {}
    size, n_special = _size(settings, "default_vocab_size"), _size(settings, "default_num_special_tokens")
    pattern, entries = settings.get("pattern"), tekken.get("vocab")
    if not isinstance(pattern, str) or not isinstance(entries, list) or n_special > size:
        raise IntegrityError(f"{FILE} has no pattern or no vocabulary")
    ranks = _ranks(entries[: size - n_special])
    special = _special_words(tekken.get("special_tokens"), n_special)
    letters = byte_letters()
    vocab = {"".join(letters[byte] for byte in piece): rank + n_special for piece, rank in ranks.items()}
    merges = [["".join(letters[byte] for byte in part) for part in pair] for pair in _merges(ranks)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if "<s>" in special else []
    return {
        "added_tokens": [{"id": number, "content": word, **flags} for number, word in enumerate(special)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [*bos, {"Sequence": {"id": "A", "type_id": 0}}], "pair": []
        },
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }  # fmt: skip


def _size(settings: dict[str, Any], name: str) -> int:
    value = settings.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_TOKENS:
        raise IntegrityError(f"{FILE}: config: {name} is {value!r:.40}, a number of tokens was expected")
    return value


def _ranks(entries: list[Any]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for entry in entries:
        text, rank = (entry.get("token_bytes"), entry.get("rank")) if isinstance(entry, dict) else (None, None)
        try:
            piece = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
        except binascii.Error:
            piece = b""
        if not piece or rank != len(found) or piece in found:
            raise IntegrityError(f"{FILE}: token {len(found)} is {str(entry)[:60]}, bytes of that rank were expected")
        found[piece] = rank
    if len([piece for piece in found if len(piece) == 1]) != 256:
        raise IntegrityError(f"{FILE} has not a token for every byte")
    return found


def _special_words(listed: Any, count: int) -> list[str]:
    """Numbers without a word have a made-up one, as in Mistral's own library."""
    words = {number: word for number, word in enumerate(_EARLY) if number < count} if not listed else {}
    for entry in listed or []:
        number, word = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (None, None)
        if not isinstance(word, str) or not isinstance(number, int) or not 0 <= number < count or number in words:
            raise IntegrityError(f"{FILE}: the special token {str(entry)[:60]} has no word or no number of its own")
        words[number] = word
    return [words.get(number, f"<SPECIAL_{number}>") for number in range(count)]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All ways to make a token of two, by the rank of what is made: tiktoken merges whatever makes the lowest."""
    found = []
    for piece, rank in ranks.items():
        for cut in range(1, len(piece)):
            left, right = ranks.get(piece[:cut]), ranks.get(piece[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right))
    found.sort()
    pieces = list(ranks)
    return [(pieces[left], pieces[right]) for _, left, right in found]


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
