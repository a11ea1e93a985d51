"""What must hold of a model file before llama.cpp is given it: a wrong file ends in a sentence, never in an abort().

Knows key names and the shapes that follow from them. Knows nothing of the container (`gguf_parse` checked that).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import MODEL_ARCH_NAMES

from .errors import IntegrityError

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

KNOWN_ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values()) | {"liquid"}


def check_loadable(f: GGUFFile) -> None:
    """Raise IntegrityError, in one sentence, for the first thing that would stop llama.cpp from loading `f`."""
    if f.architecture not in KNOWN_ARCHITECTURES:
        raise IntegrityError(f"{f.path} is of the architecture {f.architecture!r}, which llama.cpp does not know")
