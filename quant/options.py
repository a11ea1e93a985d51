"""What may be asked beside the type, from words as llama-quantize takes them.

Knows how words are spelled. What they change is `choose`'s and `container`'s to know.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType

from liquidcli.errors import IntegrityError, NotFoundError, UsageError

from .types import tensor_type

_OVERRIDE_HINT = "for example --tensor-type attn_q=q8_0"
_KEY_HINT = "for example --override-kv llama.context_length=int:8192; types are int, float, bool and str"
_LAYOUT = ("general.alignment", "split.")  # what is written decides these
_MAX_WORD_BYTES = 127  # what fits into llama.cpp's struct for it


@dataclass(frozen=True)
class Options:
    """Names as in llama-quantize."""

    tensor_type: tuple[tuple[str, T], ...] = ()  # (regular expression, type), the first that matches counts
    output_tensor_type: T | None = None
    token_embedding_type: T | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    override_kv: tuple[tuple[str, Any], ...] = ()  # int, float, bool or str by key
    include_weights: tuple[str, ...] = ()  # parts of names: the importance matrix counts for these alone
    exclude_weights: tuple[str, ...] = ()  # or for all but these


def overrides(words: Sequence[str]) -> tuple[tuple[str, T], ...]:
    """RE=TYPE words; the expression is lower-cased as llama-quantize does."""
    pairs = []
    for word in words:
        pattern, equals, kind = word.partition("=")
        if not pattern or not equals or not kind:
            raise UsageError(f"{word!r} is not of the form RE=TYPE", hint=_OVERRIDE_HINT)
        try:
            re.compile(pattern.lower())
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}", hint=_OVERRIDE_HINT) from error
        pairs.append((pattern.lower(), tensor_type(kind)))
    return tuple(pairs)


def words_of_file(path: Path) -> list[str]:
    """RE=TYPE words of a file, between spaces or line ends."""
    try:
        return path.read_text("utf-8").split()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", hint=_OVERRIDE_HINT) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, a file was expected", hint=_OVERRIDE_HINT) from None
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read as text: {error}") from error


def optional_tensor_type(text: str | None) -> T | None:
    return tensor_type(text) if text else None


def key_overrides(words: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """KEY=TYPE:VALUE words."""
    pairs = []
    for word in words:
        key, equals, typed = word.partition("=")
        kind, colon, value = typed.partition(":")
        if not key or not equals or not colon or kind not in _READERS or len(key.encode()) > _MAX_WORD_BYTES:
            raise UsageError(f"{word!r} is not of the form KEY=TYPE:VALUE", hint=_KEY_HINT)
        if key.startswith(_LAYOUT):
            raise UsageError(f"{key} says where the tensors lie, no value but the file's own is right")
        try:
            pairs.append((key, _READERS[kind](value)))
        except ValueError as error:
            raise UsageError(f"{value!r} is no {kind} value of {key}", hint=_KEY_HINT) from error
    return tuple(pairs)


def _float32(text: str) -> float:
    value = float(text)
    if math.isfinite(value) and abs(value) > np.finfo(np.float32).max:
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _text(text: str) -> str:
    if len(text.encode()) > _MAX_WORD_BYTES:
        raise ValueError(text)
    return text


_READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": _float32, "bool": _boolean, "str": _text}


def value_bytes(value: bool | int | float | str) -> bytes:
    """Type and value as a GGUF holds them; whole numbers without their sign, as llama-quantize writes them."""
    if isinstance(value, bool):
        return struct.pack("<I?", GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, abs(value) & 0xFFFFFFFF)
    if isinstance(value, float):
        return struct.pack("<If", GGUFValueType.FLOAT32, value)
    raw = value.encode("utf-8")
    return struct.pack("<IQ", GGUFValueType.STRING, len(raw)) + raw
