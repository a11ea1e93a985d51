"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does: told from its structure, in a closed world.

The table serves both directions: a structure's name, and a name's structure. Knows regexes and the order of steps. Does
not know vocabularies.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from liquidcli.errors import IntegrityError, LiquidError

Step = tuple


@dataclass(frozen=True)
class PreTokenizer:
    """`tokenizer.ggml.pre`, and what llama.cpp does under that name without being asked."""

    name: str
    steps: tuple[Step, ...]
    ignores_merges: bool = False
    normalizers: tuple[str, ...] = ()  # the checkpoint's, which llama.cpp leaves out
    also: tuple[str, ...] = ()  # other names under which llama.cpp does the same


def _split(regex: str) -> Step:
    return ("Split", regex, "Isolated", False)


_BYTES = ("ByteLevel", False, False)
_GPT2 = ("ByteLevel", False, True)
_DIGITS = ("Digits", True)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_QWEN35 = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _LOWER + "|" + _UPPER + r"|\p{N}" + _SLASH_TAIL
_GPT4O = _LOWER + _CONTRACTION + "?|" + _UPPER + _CONTRACTION + r"?|\p{N}{1,3}" + _SLASH_TAIL
_SEED = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_MINICPM5 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+" + _TAIL
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
# the cased letters of Unicode 14, spelled out as DeepSeek LLM does
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"

# where two share their steps, ignore_merges and then the normalizer decide; the first is taken where nothing does
KNOWN = (
    PreTokenizer("gpt-2", (_GPT2,), also=("phi-2", "jais", "gigachat", "mellum", "exaone4", "trillion", "a.x-4.0")),
    PreTokenizer("olmo", (_GPT2,), normalizers=("NFC",), also=("mpt",)),
    PreTokenizer(
        "smollm", (_DIGITS, _GPT2), also=("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2")
    ),
    PreTokenizer("command-r", (_DIGITS, _GPT2), normalizers=("NFC",)),
    PreTokenizer(
        "llama-bpe",
        (_split(_LLAMA3), _BYTES),
        ignores_merges=True,
        also=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    PreTokenizer("dbrx", (_split(_LLAMA3), _BYTES), also=("smaug-bpe",)),
    PreTokenizer("tekken", (_split(_TEKKEN), _BYTES), ignores_merges=True),
    # llama.cpp's own `llama4` forgets that words hold combining marks; the same regex with them has this name
    PreTokenizer(
        "granite-embed-multi-97m",
        (_split(_GPT4O), _BYTES),
        ignores_merges=True,
        also=("llama4", "gpt-4o", "kanana2", "minimax-m2"),
    ),
    PreTokenizer(
        "qwen2",
        (_split(_QWEN2), _BYTES),
        normalizers=("NFC",),
        also=("deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2", "stablelm2"),
    ),
    PreTokenizer("qwen35", (_split(_QWEN35), _BYTES), normalizers=("NFC",)),
    PreTokenizer("seed-coder", (_split(_SEED), _BYTES)),
    PreTokenizer("minicpm5", (_split(r"\p{N}{1,3}"), _split(_MINICPM5), _BYTES), ignores_merges=True),
    PreTokenizer(
        "deepseek-llm",
        (
            *map(_split, ("[\r\n]", rf"\s?[{_CASED}]+", _DEEPSEEK_PUNCTUATION, r"\s+$", _HAN_HANGUL)),
            *(_DIGITS, _BYTES),
        ),
    ),
    PreTokenizer(
        "deepseek-coder",
        (*map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL)), _DIGITS, _BYTES),
    ),
    PreTokenizer(
        "deepseek-v3",
        (*map(_split, (r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3)), _BYTES),
        also=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
)


def identify(tokenizer: dict[str, Any]) -> PreTokenizer:
    """The one that matches; LiquidError that says what was seen when none does."""
    seen = tuple(steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    found = [one for one in KNOWN if _comparable(one.steps) == _comparable(seen)]
    if not found:
        raise LiquidError(
            f"tokenizer.json splits text by {_show(seen)}, which is none of the known ways: "
            + ", ".join(known.name for known in KNOWN)
        )
    names = tuple(step[0] for step in steps(tokenizer.get("normalizer"), "normalizers"))
    allowed = [one for one in found if names in ((), one.normalizers)]
    if not allowed:
        raise LiquidError(f"tokenizer.json normalizes text by {', '.join(names)}, which llama.cpp does not do")
    model = tokenizer.get("model")
    ignores_merges = bool(isinstance(model, dict) and model.get("ignore_merges"))
    return min(allowed, key=lambda one: (one.ignores_merges != ignores_merges, one.normalizers != names))


def named(name: str) -> PreTokenizer | None:
    """The one that llama.cpp uses under this name."""
    return next((one for one in KNOWN if name == one.name or name in one.also), None)


def as_json(steps: tuple[Step, ...]) -> dict[str, Any]:
    """tokenizer.json's `pre_tokenizer` of these steps."""
    nodes = [_node(step) for step in steps]
    return nodes[0] if len(nodes) == 1 else {"type": "Sequence", "pretokenizers": nodes}


def _node(step: Step) -> dict[str, Any]:
    if step[0] == "Split":
        return {"type": "Split", "pattern": {"Regex": step[1]}, "behavior": step[2], "invert": step[3]}
    if step[0] == "Digits":
        return {"type": "Digits", "individual_digits": step[1]}
    return {"type": "ByteLevel", "add_prefix_space": step[1], "trim_offsets": True, "use_regex": step[2]}


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


def _comparable(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Spellings that say the same: a regex that matches everything keeps what it matches or removes nothing else;
    a range's end may have been composed on its way here."""
    return tuple(
        ("Split", unicodedata.normalize("NFC", str(step[1])), "Isolated", False)
        if step[0] == "Split" and (step[2:] == ("Isolated", False) or (step[2:] == ("Removed", True) and _covers(step)))
        else step
        for step in steps
    )


def _covers(step: Step) -> bool:
    return str(step[1]).endswith(r"|\s+(?!\S)|\s+")


def _show(seen: tuple[Step, ...]) -> str:
    text = " then ".join(f"{step[0]}({', '.join(map(str, step[1:]))})" for step in seen) or "nothing"
    return text if len(text) <= 300 else text[:297] + "..."
