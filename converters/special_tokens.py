"""Special tokens, whether they are added to a text, and the chat template.

Follows upstream's order: tokenizer_config.json names a token, tokenizer.json knows its number, config.json fills what
is left; the post-processor says what is put around a text. Knows nothing of vocabularies.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError, quote

from . import fields
from .checkpoint import Checkpoint, check_small, is_there
from .fields import Field

# kind -> its key tokenizer.ggml.{}_token_id, spelled as the loader spells it
KEYS = {
    **{kind: kind for kind in ("bos", "eos", "eot", "mask")},
    **{"unk": "unknown", "sep": "seperator", "pad": "padding"},
}
# ref: llama.cpp, llama_vocab::impl::load: the words that end a turn there, and those that end a text
TURN_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>",
})  # fmt: skip
ENDS_BY_WORD = TURN_ENDS | {
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>",
    "<|tool_response>", "[e~[",
}
ADDABLE = ("bos", "eos", "sep")
_TEMPLATE_NAME = frozenset(string.ascii_letters + string.digits)


@dataclass
class SpecialTokens:
    words: dict[str, str] = field(default_factory=dict)  # bos -> "<s>"
    ids: dict[str, int] = field(default_factory=dict)
    added: dict[str, bool] = field(default_factory=dict)  # add_bos_token and its kin
    warnings: list[str] = field(default_factory=list)

    def fields(self) -> list[Field]:
        ids = [fields.u32(f"tokenizer.ggml.{KEYS[kind]}_token_id", self.ids[kind]) for kind in KEYS if kind in self.ids]
        flags = [(kind, self.added[kind]) for kind in ADDABLE if kind in self.added]
        return ids + [fields.boolean(f"tokenizer.ggml.add_{kind}_token", value) for kind, value in flags]


def read_special_tokens(
    checkpoint: Checkpoint, tokenizer: dict[str, Any] | None, tokens: Sequence[str | bytes]
) -> SpecialTokens:
    """`tokens` is the whole vocabulary, where words are looked for last."""
    n_vocab = len(tokens)
    settings = checkpoint.json("tokenizer_config.json")
    special = SpecialTokens()
    if settings:
        special.words = {kind: word for kind in KEYS if (word := _word(settings.get(f"{kind}_token")))}
    if tokenizer:
        for processor in _processors(tokenizer.get("post_processor")):
            _read_processor(processor, special)
    numbers = {token["content"]: token["id"] for token in added_tokens(tokenizer)}
    for kind in KEYS:
        if settings and isinstance(flag := settings.get(f"add_{kind}_token"), bool):
            special.added.setdefault(kind, flag)
        candidates = (numbers.get(special.words.get(kind, "")), checkpoint.config.get(f"{kind}_token_id"))
        for number in candidates if settings else candidates[1:]:
            number = number[0] if isinstance(number, list) and number else number
            if isinstance(number, int) and not isinstance(number, bool) and kind not in special.ids:
                _set(special, kind, number, n_vocab)
    _find_words(special, tokens)
    _read_ends(checkpoint, special, tokens)
    return special


def _find_words(special: SpecialTokens, tokens: Sequence[str | bytes]) -> None:
    """A tokenizer.model alone lists no added tokens: its words are tokens like others."""
    for kind, word in special.words.items():
        if kind not in special.ids and kind in KEYS:
            places = [number for number, token in enumerate(tokens) if token in (word, word.encode())]
            if places:
                special.ids[kind] = places[0]


def _read_ends(checkpoint: Checkpoint, special: SpecialTokens, tokens: Sequence[str | bytes]) -> None:
    """generation_config.json may name several tokens that end a text. llama.cpp knows many by their words; the first
    other one becomes the end of turn, more have no key."""
    ends = checkpoint.advice("generation_config.json").get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    numbers = [one for one in ends if isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(tokens)]
    known = {special.ids.get("eos"), special.ids.get("eot")}
    unknown = [one for one in numbers if one not in known and _text(tokens[one]) not in ENDS_BY_WORD]
    if unknown and "eos" not in special.ids:
        special.ids["eos"] = unknown.pop(0)
    if unknown and "eot" not in special.ids and not any(_text(token) in TURN_ENDS for token in tokens):
        special.ids["eot"] = unknown.pop(0)
    if unknown:
        words = ", ".join(repr(_text(tokens[one])) for one in unknown)
        special.warnings.append(f"generation_config.json ends texts at {words} too, for which a GGUF has no key")


def _text(token: str | bytes) -> str:
    return token.decode("utf-8", "replace") if isinstance(token, bytes) else token


def _set(special: SpecialTokens, kind: str, number: int, n_vocab: int) -> None:
    if 0 <= number < n_vocab:
        special.ids[kind] = number
    else:
        special.warnings.append(f"{kind}_token_id {number!r:.40} is not a token of this vocabulary and was left out")


def added_tokens(tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """tokenizer.json's added_tokens, checked."""
    tokens = (tokenizer or {}).get("added_tokens") or []
    for token in tokens if isinstance(tokens, list) else [tokens]:
        number, text = (token.get("id"), token.get("content")) if isinstance(token, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise IntegrityError(f"an added token of the tokenizer has no number or no text: {token!r:.80}")
    return tokens


def tokens_listed_elsewhere(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Added tokens of tokenizer_config.json and of added_tokens.json."""
    decoder = (checkpoint.json("tokenizer_config.json") or {}).get("added_tokens_decoder") or {}
    found = []
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if number.isdecimal() and len(number) < 10 and isinstance(token, dict):
            found.append({**token, "id": int(number)})
    seen = {token["id"] for token in found}
    for text, number in (checkpoint.json("added_tokens.json") or {}).items():
        if not isinstance(number, int) or number not in seen:
            found.append({"content": text, "id": number})
    return added_tokens({"added_tokens": found})


def _word(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _processors(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        inner = node.get("processors", [node])
        yield from (one for one in inner if isinstance(one, dict)) if isinstance(inner, list) else ()


def _read_processor(processor: dict[str, Any], special: SpecialTokens) -> None:
    kind = processor.get("type")
    if kind == "ByteLevel":
        special.added.setdefault("bos", False)
        special.added.setdefault("eos", False)
    elif kind == "TemplateProcessing":
        single, pair = _pieces(processor.get("single")), _pieces(processor.get("pair"))
        _read_single(single, special)
        _read_pair(single, pair, special)
    else:
        special.warnings.append(f"tokenizer.json's post-processor {quote(kind)} is not known, it was not converted")


def _pieces(template: Any) -> list[tuple[str, str]]:
    """("SpecialToken", "<s>") and ("Sequence", "A"), in order."""
    found = []
    for piece in template if isinstance(template, list) else []:
        for kind, value in piece.items() if isinstance(piece, dict) else ():
            found.append((kind, str(value.get("id")) if isinstance(value, dict) else ""))
    return found


def _read_single(single: list[tuple[str, str]], special: SpecialTokens) -> None:
    if len(single) < 2:
        return
    words = special.words
    if single[0][0] == "SpecialToken":
        special.added["bos"] = words.setdefault("bos", single[0][1]) == single[0][1]
        if not special.added["bos"]:
            begin, bos = quote(single[0][1]), quote(words["bos"])
            special.warnings.append(f"texts begin with {begin}, which is not the bos token {bos}")
    if single[-1][0] == "SpecialToken":
        if (last := single[-1][1]) != words.get("eos"):
            if "eos" in words:
                words["eot"] = words["eos"]
            words["eos"] = last
        special.added["eos"] = True


def _read_pair(single: list[tuple[str, str]], pair: list[tuple[str, str]], special: SpecialTokens) -> None:
    """Whether a separator stands between two texts, what upstream writes as add_sep_token."""
    first = single[0] if len(single) > 1 and single[0][0] == "SpecialToken" else None
    last = single[-1] if len(single) > 1 and single[-1][0] == "SpecialToken" else None
    if pair and first == pair[0]:
        pair = pair[1:]
    if pair and last == pair[-1]:
        pair = pair[:-1]
    if len(pair) < 3 or pair[0] != ("Sequence", "A") or pair[-1] != ("Sequence", "B"):
        return
    separators = {special.words.get("sep"), special.words.get("eos")} - {None}
    between = [word if kind == "SpecialToken" else None for kind, word in pair[1:-1]]
    one = between[0] in separators and last is None
    special.added["sep"] = one or (len(between) == 2 and between[1] in separators)


def chat_template_fields(checkpoint: Checkpoint) -> list[Field]:
    """From the first place that has any, in transformers' order: files, tokenizer_config.json, chat_template.json."""
    template: Any = _template_files(checkpoint)
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = template or (checkpoint.json(name) or {}).get("chat_template")
    if isinstance(template, str):
        return [fields.string("tokenizer.chat_template", template)] if template else []
    if not isinstance(template, list):
        return []
    named = {}
    for choice in template:
        if isinstance(choice, dict) and isinstance(choice.get("name"), str) and isinstance(choice.get("template"), str):
            named["".join(c if c in _TEMPLATE_NAME else "_" for c in choice["name"])] = choice["template"]
    default = named.pop("default", "")
    found = [fields.string(f"tokenizer.chat_template.{name}", text) for name, text in named.items() if name and text]
    if found:
        found.append(fields.array("tokenizer.chat_templates", sorted(named), Type.STRING))
    return found + ([fields.string("tokenizer.chat_template", default)] if default else [])


def _template_files(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """chat_template.jinja is the default one, those in a folder of their own have names."""
    named = {path.stem: path for path in sorted((checkpoint.folder / "additional_chat_templates").glob("*.jinja"))}
    named = {"default": checkpoint.folder / "chat_template.jinja", **named}
    found = {name: path for name, path in named.items() if is_there(path)}
    for path in found.values():
        check_small(path)
    return [
        {"name": name, "template": path.read_text(encoding="utf-8", errors="replace")} for name, path in found.items()
    ]
