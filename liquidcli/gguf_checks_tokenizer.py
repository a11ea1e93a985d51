"""What must hold of the tokenizer inside a model file, so that llama.cpp neither refuses nor asserts on it.

Knows the `tokenizer.ggml.*` keys. Knows nothing of how text is split into tokens.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NoReturn

from gguf import GGUFValueType

from .errors import IntegrityError, quote

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

_MODELS = frozenset(("llama", "bert", "gpt2", "t5", "rwkv", "plamo2", "gemma4", "hybriddna", "whitespace"))
_NO_TOKENIZER = frozenset(("no_vocab", "none"))
_WITH_MERGES = frozenset(("gpt2", "gemma4", "hybriddna", "whitespace"))
_WITHOUT_MERGES = frozenset(("kimi-k2",))  # pre-tokenizers that need none
_BYTE_TYPE = 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_DEFAULT_IDS = {  # what llama.cpp assumes where the file does not say
    "llama": {"bos": 1, "eos": 2}, "gpt2": {"bos": 11, "eos": 11}, "hybriddna": {"bos": 11, "eos": 11},
    "whitespace": {"bos": 11, "eos": 11}, "plamo2": {"bos": 1, "eos": 2}, "bert": {"bos": 101, "sep": 102},
    "t5": {"eos": 1},
}  # fmt: skip
# Tokenizers that may add the token where the file does not say; of BPE some pre-tokenizers do.
_ADDED = {
    "bos": frozenset(("llama", "bert", "gpt2", "gemma4", "hybriddna", "whitespace")),
    "eos": frozenset(("t5",)),
    "sep": frozenset(("bert",)),
}
_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
_IDS = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad",
    "fim_rep", "fim_sep",
)  # fmt: skip
_KINDS = {
    **{f"tokenizer.ggml.{name}": GGUFValueType.BOOL for name in _FLAGS},
    **{f"tokenizer.ggml.{name}_token_id": GGUFValueType.UINT32 for name in _IDS},
    "tokenizer.ggml.pre": GGUFValueType.STRING,
    "tokenizer.chat_template": GGUFValueType.STRING,
}
_ARRAYS = {
    "tokenizer.ggml.scores": (GGUFValueType.FLOAT32, GGUFValueType.INT32),
    "tokenizer.ggml.token_type": (GGUFValueType.INT32,),
}


def check_tokenizer(f: GGUFFile, needed: bool = True) -> None:
    """Raise IntegrityError for the first thing wrong with the tokenizer of `f`."""
    model = f.metadata.get("tokenizer.ggml.model")
    if model is not None and not isinstance(model, str):
        _fail(f, f"tokenizer.ggml.model is {quote(model)}, a string was expected")
    if model in _NO_TOKENIZER or (model is None and not needed):
        if needed:
            _fail(f, f"tokenizer.ggml.model is {quote(model)}: the file holds no tokenizer, so it takes no text")
        return
    if model not in _MODELS:
        found = "missing" if model is None else f"{quote(model)}, which llama.cpp does not know"
        _fail(f, f"tokenizer.ggml.model is {found}")
    tokens = _strings(f, "tokenizer.ggml.tokens")
    if not tokens:
        _fail(f, "the tokenizer has no tokens")
    for key, kinds in _ARRAYS.items():
        _check_parallel(f, key, kinds, len(tokens))
    _check_distinct(f, tokens)
    _check_kinds(f)
    if model in _WITH_MERGES and f.metadata.get("tokenizer.ggml.pre") not in _WITHOUT_MERGES:
        _check_merges(f)
    if model == "bert" and _BYTE_TYPE in f.metadata.get("tokenizer.ggml.token_type", []):
        _fail(f, "a tokenizer of the kind 'bert' has no byte tokens, this one does")
    if model == "llama":
        _check_byte_tokens(f, tokens)
    for name, added in _ADDED.items():
        _check_added(f, model, name, len(tokens), model in added)


def _fail(f: GGUFFile, what: str) -> NoReturn:
    raise IntegrityError(f"{f.path}: {what}")


def _strings(f: GGUFFile, key: str) -> list[str]:
    if f.metadata_types.get(key) != (GGUFValueType.ARRAY, GGUFValueType.STRING):
        _fail(f, f"{key} is {'not a list of strings' if key in f.metadata else 'missing'}")
    return f.metadata[key]


def _check_parallel(f: GGUFFile, key: str, kinds: tuple[GGUFValueType, ...], n_tokens: int) -> None:
    if key not in f.metadata:
        return
    if f.metadata_types[key] not in [(GGUFValueType.ARRAY, kind) for kind in kinds]:
        _fail(f, f"{key} is no list of {' or '.join(kind.name for kind in kinds)}")
    if len(f.metadata[key]) != n_tokens:
        _fail(f, f"{key} has {len(f.metadata[key])} entries for {n_tokens} tokens")


def _check_distinct(f: GGUFFile, tokens: list[str]) -> None:
    """Two tokens of the same bytes trip an assertion; texts may be equal only where undecodable bytes were replaced."""
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[bytes, int] = {}
    for i, token in enumerate(_raw_strings(f, "tokenizer.ggml.tokens")):
        if token and seen.setdefault(token, i) != i:
            _fail(f, f"tokens {seen[token]} and {i} are both {quote(tokens[i])}")


def _raw_strings(f: GGUFFile, key: str) -> list[bytes]:
    data = f.raw_value(key)
    strings, at = [], 4 + 4 + 8  # array, string, count
    while at < len(data):
        n_bytes = struct.unpack_from("<Q", data, at)[0]
        strings.append(data[at + 8 : at + 8 + n_bytes])
        at += 8 + n_bytes
    return strings


def _check_merges(f: GGUFFile) -> None:
    for i, merge in enumerate(_strings(f, "tokenizer.ggml.merges")):
        if merge.find(" ", 1) < 0:
            _fail(f, f"merge {i} is {quote(merge)}, two tokens with a space between them were expected")


def _check_byte_tokens(f: GGUFFile, tokens: list[str]) -> None:
    known, types = set(tokens), f.metadata.get("tokenizer.ggml.token_type", [])
    for byte in range(256):
        if f"<0x{byte:02X}>" not in known and not (byte < 128 and chr(byte) in known):
            _fail(f, f"the tokenizer has no token <0x{byte:02X}>, so there are texts that it cannot take")
    for i, (token, kind) in enumerate(zip(tokens, types, strict=False)):
        if kind == _BYTE_TYPE and not _BYTE_TOKEN.fullmatch(token):
            _fail(f, f"token {i} is {quote(token)}, but its type says that it is a byte like <0x0A>")


def _check_kinds(f: GGUFFile) -> None:
    for key, kind in _KINDS.items():
        if f.metadata_types.get(key, (kind,)) != (kind,):
            _fail(f, f"{key} is {quote(f.metadata[key])}, a value of type {kind.name} was expected")


def _check_added(f: GGUFFile, model: str, name: str, n_tokens: int, by_default: bool) -> None:
    """A token that is put before or after every text must exist."""
    if not f.metadata.get(f"tokenizer.ggml.add_{name}_token", by_default):
        return
    key = f"tokenizer.ggml.{'seperator' if name == 'sep' else name}_token_id"
    found, usual = f.metadata.get(key), _DEFAULT_IDS.get(model, {}).get(name)
    if not any(token is not None and 0 <= token < n_tokens for token in (found, usual)):
        _fail(f, f"{key} is {found}, but that token is added to every text and there are {n_tokens} tokens")
