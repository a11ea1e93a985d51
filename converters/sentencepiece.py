"""SentencePiece-style BPE with byte fallback (Llama 2, Mistral v0.1): tokens, types and scores.

From tokenizer.model, whose protobuf is read here field by field; or, where only a tokenizer.json is left, with scores
from the order of its merges. Knows nothing of byte-level BPE.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import TokenType

from liquidcli.errors import IntegrityError, LiquidError, quote

from . import fields
from .bpe import read_merges
from .checkpoint import Checkpoint, is_there
from .fields import Field
from .pretokenizers import steps
from .special_tokens import added_tokens, tokens_listed_elsewhere
from .vocab import Vocab

SPACE = "\u2581"
ADDED_SCORE, BLANK_SCORE = -1000.0, -10000.0  # upstream's
MODEL_BPE = 2
NEVER_SPLITS = ("Split", " ", "MergedWithPrevious", False)  # Gemma's: its normalizer has left no space by then
# ref: sentencepiece_model.proto
_PIECE_TYPES = {
    2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 4: TokenType.USER_DEFINED, 5: TokenType.UNUSED, 6: TokenType.BYTE
}  # fmt: skip
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def sentencepiece_fields(
    checkpoint: Checkpoint, tokenizer: dict[str, Any] | None, n_vocab: int
) -> tuple[list[Field], list[str]]:
    vocab = Vocab(n_vocab, BLANK_SCORE)
    path = checkpoint.folder / "tokenizer.model"
    adds_space = _from_model(path, vocab) if is_there(path) else _from_json(tokenizer or {}, vocab)
    elsewhere, own = tokens_listed_elsewhere(checkpoint), added_tokens(tokenizer)
    beyond = {token["id"]: token["content"] for token in (*elsewhere, *own) if token["id"] >= n_vocab}
    for token in elsewhere:
        if token["id"] not in beyond:
            vocab.put_added(token, ADDED_SCORE)
    for token in own:
        if token["id"] not in beyond and (not path.is_file() or vocab.is_blank(token["id"])):
            vocab.put_added(token, ADDED_SCORE)
    if beyond:
        first = min(beyond)
        vocab.warnings.append(
            f"{len(beyond)} added tokens lie beyond the model's {n_vocab} and were left out, "
            f"the first is {quote(beyond[first])} with the number {first}"
        )
    found = [fields.string("tokenizer.ggml.model", "llama"), fields.string("tokenizer.ggml.pre", "default")]
    if not adds_space:
        found.append(fields.boolean("tokenizer.ggml.add_space_prefix", False))
    return found + vocab.fields(with_scores=True), vocab.warnings


def _from_json(tokenizer: dict[str, Any], vocab: Vocab) -> bool:
    model = tokenizer["model"]
    vocab.put_base(model.get("vocab"), lambda text: TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL)
    unknown = model.get("unk_token")
    if isinstance(unknown, str) and unknown in model["vocab"]:
        vocab.put(model["vocab"][unknown], unknown, TokenType.UNKNOWN)
    pairs = read_merges(model.get("merges"), model["vocab"])
    _score_by_rank(pairs, model["vocab"], vocab)
    return _adds_space(tokenizer, vocab)


def _score_by_rank(pairs: list[tuple[str, str]], numbers: dict[str, int], vocab: Vocab) -> None:
    """The earlier a token can be made, the higher its score; warns where scores cannot say what the merges say."""
    first: dict[str, int] = {}
    interleaved = 0
    for rank, (left, right) in enumerate(pairs):
        text = left + right
        if first.setdefault(text, rank) != rank and "".join(pairs[rank - 1]) != text:
            interleaved += 1
    for text, number in numbers.items():
        vocab.scores[number] = -float(first.get(text, len(pairs)))
    listed = set(pairs)
    free = sum(
        (text[:cut], text[cut:]) not in listed
        for text in first
        for cut in range(1, len(text))
        if text[:cut] in numbers and text[cut:] in numbers
    )
    if interleaved or free:
        vocab.warnings.append(
            f"without tokenizer.model, scores only approximate tokenizer.json's merges ({interleaved} out of order, "
            f"{free} that llama.cpp makes and tokenizer.json does not): rare words may be split differently"
        )


def _adds_space(tokenizer: dict[str, Any], vocab: Vocab) -> bool:
    """Whether a space is put before a text: the Prepend normalizer, or Metaspace."""
    normal = steps(tokenizer.get("normalizer"), "normalizers")
    before = steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    prepends = ("Prepend", f"prepend={SPACE!r}")
    before = [step for step in before if step != NEVER_SPLITS]
    for step in [*normal, *before]:
        if step[0] not in ("Prepend", "Replace", "Metaspace") or (step[0] == "Replace" and step[1:] != (" ", SPACE)):
            raise LiquidError(f"tokenizer.json prepares text by {step[0]}{step[1:]}, which llama.cpp does not do")
    if prepends in normal:
        return True
    meta = next((step for step in before if step[0] == "Metaspace"), ())
    if "prepend_scheme='first'" in meta:
        vocab.warnings.append("llama.cpp puts a space before text after a special token, tokenizer.json does not")
    return any(mark in meta for mark in ("prepend_scheme='first'", "prepend_scheme='always'")) or (
        "add_prefix_space=True" in meta and not any(str(part).startswith("prepend_scheme") for part in meta)
    )


def _from_model(path: Path, vocab: Vocab) -> bool:
    pieces: list[dict[int, Any]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in messages(path.read_bytes(), path):
        if number == 1:
            pieces.append(dict(messages(value, path)))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(messages(value, path))
    if not pieces:
        raise IntegrityError(f"{path} holds no tokens")
    if trainer.get(3, 1) != MODEL_BPE:
        raise LiquidError(f"{path} holds a SentencePiece model of kind {trainer.get(3, 1)}, expected BPE ({MODEL_BPE})")
    for number, piece in enumerate(pieces[: vocab.size]):
        text, score = piece.get(1, b""), piece.get(2, b"\0\0\0\0")
        if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
            raise IntegrityError(f"{path}: token {number} is no text with a score")
        kind = _PIECE_TYPES.get(piece.get(3, 1), TokenType.NORMAL)
        if kind is TokenType.USER_DEFINED:  # llama.cpp looks for it before spaces are replaced
            text = text.replace(SPACE.encode(), b" ")
        vocab.put(number, text, kind, struct.unpack("<f", score)[0])
    if len(pieces) > vocab.size:
        vocab.warnings.append(f"{path.name} has {len(pieces)} tokens, the model {vocab.size}: the last were left out")
    return normalizer.get(3, 1) != 0


def messages(data: bytes | int, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message: varints as int, everything else as bytes."""
    if not isinstance(data, bytes):
        raise IntegrityError(f"{path} is no SentencePiece model")
    at = 0
    while at < len(data):
        key, at = _varint(data, at, path)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at, path)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _varint(data, at, path)
        if kind not in (1, 2, 5) or at + size > len(data):
            raise IntegrityError(f"{path} is cut short or no SentencePiece model")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise IntegrityError(f"{path} is cut short or no SentencePiece model")
