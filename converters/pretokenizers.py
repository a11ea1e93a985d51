"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does: told from its structure, in a closed world.

Knows regexes and the order of steps. Does not know vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from liquidcli.errors import IntegrityError, LiquidError

Step = tuple


@dataclass(frozen=True)
class PreTokenizer:
    """`tokenizer.ggml.pre`, and what llama.cpp does under that name without being asked."""

    name: str
    ignores_merges: bool = False
    normalizers: tuple[str, ...] = ()  # the checkpoint's, which llama.cpp leaves out


def _split(regex: str) -> Step:
    return ("Split", regex, "Isolated", False)


_BYTES = ("ByteLevel", False, False)
_GPT2 = ("ByteLevel", False, True)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_TEKKEN = _LOWER + "|" + _UPPER + r"|\p{N}" + _SLASH_TAIL
_GPT4O = _LOWER + _CONTRACTION + "?|" + _UPPER + _CONTRACTION + r"?|\p{N}{1,3}" + _SLASH_TAIL

KNOWN: dict[tuple[Step, ...], PreTokenizer] = {
    (_GPT2,): PreTokenizer("gpt-2"),
    (("Digits", True), _GPT2): PreTokenizer("smollm"),
    (_split(_LLAMA3), _BYTES): PreTokenizer("llama-bpe", ignores_merges=True),
    (_split(_TEKKEN), _BYTES): PreTokenizer("tekken", ignores_merges=True),
    (_split(_GPT4O), _BYTES): PreTokenizer("llama4"),
    (_split(_QWEN2), _BYTES): PreTokenizer("qwen2", normalizers=("NFC",)),
}


def identify(tokenizer: dict[str, Any]) -> PreTokenizer:
    """The one that matches; LiquidError that says what was seen when none does."""
    seen = tuple(steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    found = KNOWN.get(seen)
    if found is None:
        raise LiquidError(
            f"tokenizer.json splits text by {_show(seen)}, which is none of the known ways: "
            + ", ".join(known.name for known in KNOWN.values())
        )
    names = tuple(step[0] for step in steps(tokenizer.get("normalizer"), "normalizers"))
    if names not in ((), found.normalizers):
        raise LiquidError(f"tokenizer.json normalizes text by {', '.join(names)}, which llama.cpp does not do")
    return found


def steps(node: Any, children: str) -> list[Step]:
    """The steps of a pre-tokenizer or normalizer, sequences laid flat, each with the settings that matter."""
    if node is None:
        return []
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        raise IntegrityError("tokenizer.json has a step without a type")
    if node["type"] == "Sequence":
        parts = node.get(children)
        if not isinstance(parts, list):
            raise IntegrityError(f"tokenizer.json has a Sequence without {children}")
        return [step for part in parts for step in steps(part, children)]
    return [_step(node)]


def _step(node: dict[str, Any]) -> Step:
    kind, pattern = node["type"], node.get("pattern")
    text = next(iter(pattern.values()), None) if isinstance(pattern, dict) else None
    settings = {
        "ByteLevel": (node.get("add_prefix_space", True), node.get("use_regex", True)),
        "Digits": (node.get("individual_digits", False),),
        "Split": (text, node.get("behavior"), node.get("invert", False)),
        "Replace": (text, node.get("content")),
    }
    found = settings.get(kind) or tuple(f"{key}={value!r}" for key, value in sorted(node.items()) if key != "type")
    return (kind, *(str(part) if isinstance(part, (dict, list)) else part for part in found))


def _show(seen: tuple[Step, ...]) -> str:
    text = " then ".join(f"{step[0]}({', '.join(map(str, step[1:]))})" for step in seen) or "nothing"
    return text if len(text) <= 300 else text[:297] + "..."
