"""Which class converts which architecture: every file of `arch/` registers itself, by the names config.json uses.

Knows names only. Adding an architecture is adding a file.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol, TypeVar

from liquidcli.errors import IntegrityError, LiquidError

from .config import Config
from .fields import Field
from .tensors import Dims, Row


class Architecture(Protocol):
    """What an arch file provides. It reads the configuration when it is made; `present` are the tensors' names."""

    gguf_name: str
    n_vocab: int
    dims: Dims

    def __init__(self, config: Config, present: Collection[str], *, fold_gates: bool) -> None: ...
    def rows(self) -> Iterable[Row]: ...
    def generated(self) -> dict[str, Any]: ...  # GGUF name -> float32 array made from the configuration alone
    def fields(self) -> list[Field]: ...
    def warnings(self) -> list[str]: ...


Kind = TypeVar("Kind", bound=type)
_KNOWN: dict[str, type[Architecture]] = {}


def arch(*names: str) -> Callable[[Kind], Kind]:
    """Class decorator: `names` are entries of config.json's `architectures`."""

    def register(kind: Kind) -> Kind:
        for name in names:
            if (before := _KNOWN.get(name)) is not None:
                raise ValueError(f"{name} is claimed by {inspect.getfile(before)} and by {inspect.getfile(kind)}")
            _KNOWN[name] = kind
        return kind

    return register


@functools.cache
def known() -> dict[str, type[Architecture]]:
    """All registered architectures, after importing every file of `arch/`."""
    package = importlib.import_module(".arch", __package__)
    for module in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
    return dict(_KNOWN)


def find(config: dict[str, Any]) -> tuple[str, type[Architecture]]:
    """The name config.json gives and its class."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise IntegrityError(f"config.json names no architecture (model_type {config.get('model_type')!r:.40})")
    for name in names:
        if name in known():
            return name, known()[name]
    near = difflib.get_close_matches(names[0], known(), 3, 0.0)
    raise LiquidError(
        f"the architecture {names[0][:80]!r} is not known here; nearest: {', '.join(near)}",
        hint="an architecture is one file in converters/arch/, see CONTRIBUTING.md",
    )
