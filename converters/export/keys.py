"""The keys of one architecture in a GGUF, through getters that remember what was asked: the rest is reported.

Knows types and that a missing key can be an error. Does not know what any key means.
"""

from __future__ import annotations

from typing import Any

from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import GGUFFile

REQUIRED: Any = object()


class Keys:
    """Keys below `llama.` or whatever the file's architecture is; names are what follows."""

    def __init__(self, f: GGUFFile) -> None:
        self.file, self.prefix = f, f"{f.architecture}."
        self._asked: set[str] = set()

    def raw(self, name: str, default: Any = None) -> Any:
        self._asked.add(name)
        value = self.file.metadata.get(self.prefix + name, default)
        if value is REQUIRED:
            raise IntegrityError(f"{self.file.path} has no {self.prefix}{name}")
        return value

    def integer(self, name: str, default: Any = REQUIRED) -> Any:
        """One number for all layers; a list that says the same for each counts as one."""
        value = self.raw(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if value is not default and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.wrong(name, value, "one whole number for all layers")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        if value is not default and not isinstance(value, float):
            raise self.wrong(name, value, "a number")
        return value

    def flag(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        if value is not default and not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def word(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        if value is not default and not isinstance(value, str):
            raise self.wrong(name, value, "a word")
        return value

    def items(self, name: str, length: int | None = None, default: Any = REQUIRED) -> Any:
        value = self.raw(name, default)
        if value is not default and (not isinstance(value, list) or (length is not None and len(value) != length)):
            raise self.wrong(name, value, f"a list of {'values' if length is None else length}")
        return value

    def only(self, name: str, *allowed: Any, why: str) -> None:
        """Refuse a value that the checkpoint's format cannot say; absent is fine."""
        value = self.raw(name)
        if value is not None and value not in allowed:
            raise LiquidError(f"{self.file.path}: {self.prefix}{name} is {value!r:.60}, which is not exported: {why}")

    def unknown(self) -> list[str]:
        names = (key.removeprefix(self.prefix) for key in self.file.metadata if key.startswith(self.prefix))
        return [
            f"{self.prefix}{name} = {self.file.metadata[self.prefix + name]!r:.60} is not known here, it was left out"
            for name in names
            if name not in self._asked
        ]

    def wrong(self, name: str, value: Any, expected: str) -> IntegrityError:
        return IntegrityError(f"{self.file.path}: {self.prefix}{name} is {value!r:.60}, expected {expected}")
