"""Which class converts which architecture: every file of `arch/` registers itself, by the names config.json uses.

Knows names, and variants that share one. Adding an architecture is adding a file.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from liquidcli.errors import IntegrityError, LiquidError, quote

from .config import Config
from .fields import Field
from .rope import Rope
from .tensors import Dims, Row


class Architecture(Protocol):
    """What an arch file provides. It reads the configuration when it is made; `present` are the tensors' names."""

    gguf_name: str
    n_vocab: int
    dims: Dims

    def __init__(self, config: Config, present: Collection[str], *, exact_gate: bool) -> None: ...
    def rows(self) -> Iterable[Row]: ...
    def generated(self) -> dict[str, Any]: ...  # GGUF name -> float32 array made from the configuration alone
    def fields(self) -> list[Field]: ...
    def warnings(self) -> list[str]: ...


class Reason(NamedTuple):
    """Why llama.cpp's own architecture is not enough for a model."""

    text: str  # what that architecture does or lacks: "has no attention windows"
    loads: bool = True  # whether it would load such a file all the same, and compute something else


def reasons(wrong: Mapping[str, bool], refused: Mapping[str, bool]) -> list[Reason]:
    """Of those that hold; `refused`: no such file would load."""
    found = [Reason(text) for text, holds in wrong.items() if holds]
    return found + [Reason(text, loads=False) for text, holds in refused.items() if holds]


@runtime_checkable
class Family(Architecture, Protocol):
    """A model for which llama.cpp has an architecture; `stock_or_liquid` asks it which one to write."""

    rope: Rope  # as `liquid` would have it

    def beyond_stock(self) -> list[Reason]: ...
    def liquid_words(self) -> dict[str, Any]: ...  # the model as a `liquid` configuration, but for the rotation


Maker = Callable[..., Architecture]  # called with (config, present, exact_gate=...); a class or a function
When = Callable[[dict[str, Any], Collection[str]], bool]  # config.json and the tensors' names
Kind = TypeVar("Kind", bound=Callable)
_KNOWN: dict[str, Maker] = {}
_VARIANTS: dict[str, list[tuple[When, Maker]]] = {}


def arch(*names: str, when: When | None = None) -> Callable[[Kind], Kind]:
    """Decorator of a class, or of a function that returns one's object; `names` are entries of `architectures`.

    `when`: a variant that goes by a plain model's name; it is asked before the plain one.
    """

    def register(kind: Kind) -> Kind:
        for name in names:
            if when is not None:
                _VARIANTS.setdefault(name, []).append((when, kind))
                continue
            if (before := _KNOWN.get(name)) is not None:
                raise ValueError(f"{name} is claimed by {inspect.getfile(before)} and by {inspect.getfile(kind)}")
            _KNOWN[name] = kind
        return kind

    return register


@functools.cache
def known() -> dict[str, Maker]:
    """All registered architectures, after importing every file of `arch/`."""
    package = importlib.import_module(".arch", __package__)
    for module in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
    return dict(_KNOWN)


def find(config: dict[str, Any], present: Collection[str] = ()) -> tuple[str, Maker]:
    """The name config.json gives and what makes its architecture; `present` are the tensors' names."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise IntegrityError(f"config.json names no architecture (model_type {quote(config.get('model_type'))})")
    for name in names:
        if name in known():
            variants = (maker for when, maker in _VARIANTS.get(name, ()) if when(config, present))
            return name, next(variants, known()[name])
    near = difflib.get_close_matches(names[0], known(), 3, 0.0)
    raise LiquidError(
        f"the architecture {quote(names[0])} is not known here; nearest: {', '.join(near)}",
        hint="liquid convert --list; a new architecture is one file in converters/arch/, see CONTRIBUTING.md",
    )
