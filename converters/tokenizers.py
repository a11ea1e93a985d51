"""A checkpoint's tokenizer as `tokenizer.*` keys.

Knows which family a folder's files belong to; the families do the rest.
"""

from __future__ import annotations

from typing import Any

from liquidcli.errors import IntegrityError, LiquidError, NotFoundError, quote

from . import fields
from .bpe import bpe_fields
from .checkpoint import Checkpoint, is_there
from .fields import Field
from .sentencepiece import sentencepiece_fields
from .special_tokens import chat_template_fields, read_special_tokens
from .tekken import FILE as TEKKEN
from .tekken import as_tokenizer_json


def tokenizer_fields(checkpoint: Checkpoint, n_vocab: int) -> tuple[list[Field], list[str]]:
    """Fields and warnings. NotFoundError without a tokenizer, LiquidError for one nobody here can express."""
    tokenizer = checkpoint.json("tokenizer.json")
    if tokenizer is None and not is_there(checkpoint.folder / "tokenizer.model"):
        if (tekken := checkpoint.json(TEKKEN)) is None:
            raise NotFoundError(f"{checkpoint.folder} has neither tokenizer.json nor tokenizer.model nor {TEKKEN}")
        tokenizer = as_tokenizer_json(tekken)
    if tokenizer is not None and not _is_sentencepiece(tokenizer):
        found, warnings = bpe_fields(checkpoint, tokenizer, n_vocab)
    else:
        found, warnings = sentencepiece_fields(checkpoint, tokenizer, n_vocab)
    settings = checkpoint.json("tokenizer_config.json") or {}
    if isinstance(prefix := settings.get("add_prefix_space"), bool):
        found = [one for one in found if one.key != "tokenizer.ggml.add_space_prefix"]
        found.append(fields.boolean("tokenizer.ggml.add_space_prefix", prefix))
    tokens = next(one.value for one in found if one.key == "tokenizer.ggml.tokens")
    special = read_special_tokens(checkpoint, tokenizer, tokens)
    if tokenizer is not None and not _is_sentencepiece(tokenizer):
        special.added = {"bos": False, **special.added}  # llama.cpp would add one under some pre-tokenizers
    return [*found, *special.fields(), *chat_template_fields(checkpoint)], [*warnings, *special.warnings]


def no_tokenizer_fields() -> list[Field]:
    """For models that are only ever fed token numbers, such as random ones in tests."""
    return [fields.string("tokenizer.ggml.model", "none")]


def _is_sentencepiece(tokenizer: dict[str, Any]) -> bool:
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise IntegrityError("tokenizer.json has no model")
    if model.get("type") != "BPE":
        raise LiquidError(f"tokenizer.json holds a {quote(model.get('type'))} model, only BPE is known here")
    return bool(model.get("byte_fallback"))
