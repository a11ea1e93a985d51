"""What converts: every architecture that config.json may name, its family's file, and what that file says of itself."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass

from .registry import known


@dataclass(frozen=True)
class Convertible:
    architecture: str  # as config.json spells it
    family: str  # the file in arch/
    summary: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def families() -> list[Convertible]:
    found = []
    for name, maker in known().items():
        module = inspect.getmodule(maker)
        assert module is not None
        summary = (module.__doc__ or "").strip().split("\n", 1)[0]
        found.append(Convertible(name, module.__name__.rpartition(".")[2], summary))
    return sorted(found, key=lambda one: (one.family, one.architecture))
