"""Bytes, counts and ages in words of the field.

Knows units. Does not know what is measured.
"""

from __future__ import annotations


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
