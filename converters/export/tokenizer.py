"""A GGUF's tokenizer as the files of a checkpoint folder, and what config.json says of its ids.

Knows which file says what. The families make their own.
"""

from __future__ import annotations

import json
from typing import Any

from .bpe import bpe_json
from .sentencepiece import sentencepiece_json, sentencepiece_model
from .vocab import Words

_CONFIG_KINDS = ("bos", "eos", "pad", "unk", "sep")


def tokenizer_files(words: Words, context: int) -> dict[str, bytes]:
    """File name below the folder to its bytes."""
    files = {}
    if words.kind == "bpe":
        files["tokenizer.json"] = _text(bpe_json(words))
    else:
        files["tokenizer.json"] = _text(sentencepiece_json(words))
        files["tokenizer.model"] = sentencepiece_model(words)
    settings = _settings(words, context)
    templates = dict(words.templates)
    if "" in templates:
        files["chat_template.jinja"] = templates.pop("").encode()
        files |= {f"additional_chat_templates/{name}.jinja": text.encode() for name, text in templates.items()}
    elif templates:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    files["tokenizer_config.json"] = _text(settings, indent=2)
    return files


def _settings(words: Words, context: int) -> dict[str, Any]:
    """PreTrainedTokenizerFast takes tokenizer.json as it is; a model's own class would build parts of it anew."""
    special = {f"{kind}_token": words.tokens[number] for kind, number in words.ids.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": words.added["bos"],
        **({"add_eos_token": True} if words.added["eos"] else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def token_ids(words: Words) -> dict[str, int]:
    """config.json's part."""
    return {f"{kind}_token_id": words.ids[kind] for kind in _CONFIG_KINDS if kind in words.ids}


def generation_settings(words: Words | None, sampling: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json: where texts end, and what the file says of sampling."""
    found: dict[str, Any] = {}
    if words:
        ends = words.ends()
        found = {name: number for name, number in token_ids(words).items() if name[:3] in ("bos", "pad")}
        if ends:
            found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {**found, **({"do_sample": True, **sampling} if sampling else {})}


def _text(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
