"""Which families every run of the tests compares at length; all of them are compared in the long one (make oracle)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

CORE = {
    "linear-adapter", "bottleneck", "span2-adapter", "flexidepth", "moe", "every-scope", "exit-around", "drop-span2",
    "gemma3", "gemma3-drop",
}  # fmt: skip


def core_first(families: Iterable[str]) -> list[Any]:
    """Parameters of a test: the core families as they are, the others marked for the long run."""
    return [name if name in CORE else pytest.param(name, marks=pytest.mark.oracle) for name in families]
