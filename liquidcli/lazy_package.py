"""Packages whose `__init__` imports far more than is wanted: it is put off until somebody asks for what only it has.

Submodules can be imported alone meanwhile. Knows Python's import system. Which packages are meant, its callers know.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_first: dict[str, tuple[str, ...]] = {}  # submodules, by package, that hold most of what is asked for


def put_off(name: str, *first: str) -> None:
    """From here on `import name` runs nothing; names are looked for in the submodules `first`, then in the package."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None or not spec.submodule_search_locations:
        return
    package = importlib.util.module_from_spec(spec)
    package.__class__ = _Package
    _first[name] = first
    sys.modules[name] = package


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        for part in _first[self.__name__]:
            module = importlib.import_module(f"{self.__name__}.{part}")
            if hasattr(module, name):
                return getattr(module, name)
        submodule = f"{self.__name__}.{name}"
        if not name.startswith("__") and importlib.util.find_spec(submodule):
            return importlib.import_module(submodule)
        _make_whole(self)
        if name not in vars(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return vars(self)[name]


def _make_whole(package: ModuleType) -> None:
    """An ordinary package again, unless a submodule asked in the middle of its own import: then once more, later."""
    package.__class__, spec = ModuleType, package.__spec__
    try:
        if spec and spec.loader:
            spec.loader.exec_module(package)
    except BaseException:
        sys.modules.pop(package.__name__, None)
        raise
    parts = (module for name, module in list(sys.modules.items()) if name.startswith(f"{package.__name__}."))
    if any(getattr(part.__spec__, "_initializing", False) for part in parts):
        package.__class__ = _Package
