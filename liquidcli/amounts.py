"""Bytes, counts and ages in words of the field.

Knows units. Does not know what is measured.
"""

from __future__ import annotations

import re

from .errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)(I?B)?", re.IGNORECASE)


def parse_size(text: str, hint: str = "for example 5GB or 500M") -> int:
    """`8G` and `8GiB` are 8 * 2^30, `8GB` is 8 * 10^9. UsageError for what is no size, with `hint`."""
    match = _SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is no size", hint=hint)
    unit, suffix = match[2].upper(), (match[3] or "").upper()
    is_decimal = suffix == "B" and unit
    factor = 1000 ** "KMGT".index(unit) * 1000 if is_decimal else _UNITS[unit]
    return int(float(match[1]) * factor)


def size_text(size_bytes: int | float) -> str:
    """98.4 MB, in powers of ten, as the hub and most shops write it."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{int(size_bytes)} B"


def count_text(count: int) -> str:
    """134.5M parameters, 8.0B parameters."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return str(count)


def age_text(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
