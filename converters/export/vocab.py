"""A GGUF's `tokenizer.*` keys as one thing: tokens with types, scores and merges, special ids, flags, chat templates.

Knows what llama.cpp takes for granted where a key is absent. Knows nothing of tokenizer files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import GGUFFile

from ..pretokenizers import PreTokenizer, named
from ..special_tokens import ADDABLE, ENDS_BY_WORD, KEYS

KINDS = {"gpt2": "bpe", "llama": "sentencepiece"}
_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}
_ADD_BOS = ("llama-bpe", "tekken")  # ref: llama.cpp, under these names without being asked


@dataclass
class Words:
    kind: str  # bpe or sentencepiece
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    pre: PreTokenizer | None = None
    ids: dict[str, int] = field(default_factory=dict)  # bos -> 1
    added: dict[str, bool] = field(default_factory=dict)  # bos -> whether one is put before a text
    adds_space: bool = False
    templates: dict[str, str] = field(default_factory=dict)  # "" is the one without a name
    warnings: list[str] = field(default_factory=list)

    def is_padding(self, number: int) -> bool:
        """A row of the embedding that stands for no token; the converter makes it again."""
        return self.types[number] == TokenType.UNUSED and self.tokens[number] == f"[PAD{number}]"

    def is_added(self, number: int) -> bool:
        return self.types[number] in (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)

    def ends(self) -> list[int]:
        """Where the runtime ends a text: by key first, then by word."""
        found = [self.ids[kind] for kind in ("eos", "eot") if kind in self.ids]
        found += [
            number
            for number, word in enumerate(self.tokens)
            if word in ENDS_BY_WORD and self.types[number] == TokenType.CONTROL
        ]
        return list(dict.fromkeys(found))


def read_words(f: GGUFFile, n_vocab: int) -> Words | None:
    """None for a file without a tokenizer."""
    model = f.metadata.get(_PREFIX + "model")
    if model in (None, "none", "no_vocab"):
        return None
    if model not in KINDS:
        raise LiquidError(f"{f.path} has a tokenizer of the kind {model!r:.40}, which is not exported")
    tokens = _list(f, "tokens", str)
    types = _list(f, "token_type", int, [int(TokenType.NORMAL)] * len(tokens))
    if len(tokens) != n_vocab or len(types) != n_vocab:
        raise IntegrityError(f"{f.path} has {len(tokens)} tokens and an embedding of {n_vocab} rows")
    if len(set(tokens)) != n_vocab:
        raise IntegrityError(f"{f.path} has a token twice")
    words = Words(KINDS[model], tokens, [_type(f, number) for number in types])
    if words.kind == "bpe":
        _read_bpe(f, words)
    else:
        words.scores = _list(f, "scores", float, [0.0] * n_vocab)
        words.adds_space = bool(f.metadata.get(_PREFIX + "add_space_prefix", True))
        if len(words.scores) != n_vocab:
            raise IntegrityError(f"{f.path} has {len(words.scores)} scores for {n_vocab} tokens")
    _read_ids(f, words)
    _read_templates(f, words)
    return words


def _list(f: GGUFFile, name: str, kind: type, default: Any = None) -> Any:
    found = f.metadata.get(_PREFIX + name, default)
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise IntegrityError(f"{f.path}: {_PREFIX}{name} is no list of {kind.__name__}")
    return found


def _type(f: GGUFFile, number: int) -> TokenType:
    try:
        return TokenType(number)
    except ValueError:
        raise IntegrityError(f"{f.path} has a token of the type {number}, which does not exist") from None


def _read_bpe(f: GGUFFile, words: Words) -> None:
    name = f.metadata.get(_PREFIX + "pre")
    words.pre = named(str(name))
    if words.pre is None:
        raise LiquidError(f"{f.path} splits text by the pre-tokenizer {name!r:.40}, whose structure is not known here")
    known = set(words.tokens)
    lost = 0
    for text in _list(f, "merges", str):
        at = text.find(" ", 1)
        left, right = text[:at], text[at + 1 :]
        if at > 0 and {left, right, left + right} <= known:
            words.merges.append((left, right))
        else:
            lost += 1
    if lost:
        words.warnings.append(f"merges left out because they name tokens that are not in the vocabulary: {lost}")


def _read_ids(f: GGUFFile, words: Words) -> None:
    defaults = _SENTENCEPIECE_IDS if words.kind == "sentencepiece" else {}
    for kind, key in KEYS.items():
        number = f.metadata.get(f"{_PREFIX}{key}_token_id", defaults.get(kind))
        if isinstance(number, int) and 0 <= number < len(words.tokens):
            words.ids[kind] = number
    adds_bos = words.kind == "sentencepiece" or f.metadata.get(_PREFIX + "pre") in _ADD_BOS
    for kind in ADDABLE:
        default = kind == "bos" and adds_bos
        words.added[kind] = bool(f.metadata.get(f"{_PREFIX}add_{kind}_token", default)) and kind in words.ids


def _read_templates(f: GGUFFile, words: Words) -> None:
    for key, text in f.metadata.items():
        name = key.removeprefix(_TEMPLATE).removeprefix(".")
        if not key.startswith(_TEMPLATE) or key == _TEMPLATE + "s" or not isinstance(text, str):
            continue
        if name and not _SAFE_NAME.fullmatch(name):
            words.warnings.append(f"the chat template {name!r:.60} has no name for a file and was left out")
        else:
            words.templates[name] = text
