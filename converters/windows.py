"""Attention windows: which layers see how far back, from `layer_types` to the `liquid.attention.*` keys.

Knows sliding and chunked windows. Does not know which families have them by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGUFValueType as Type

from liquidcli.errors import IntegrityError

from . import fields
from .config import Config
from .fields import Field

WINDOWS = {"sliding_attention": "sliding", "chunked_attention": "chunked"}
MAX_WINDOW = (1 << 31) - 1


@dataclass(frozen=True)
class Window:
    """Which layers see how far back."""

    kind: str = "none"
    size: int = 0
    layers: tuple[bool, ...] = ()

    @classmethod
    def read(cls, config: Config, n_layer: int) -> Window:
        types = config.items("layer_types", str, n_layer, default=None) or ()
        sizes = {
            "sliding": config.integer("sliding_window", 0, low=0, high=MAX_WINDOW),
            "chunked": config.integer("attention_chunk_size", 0, low=0, high=MAX_WINDOW),
        }
        kinds = set(types) - {"full_attention"}
        if kinds - set(WINDOWS) or len(kinds) > 1:
            raise IntegrityError(f"config.json: layer_types has {sorted(kinds)}, expected one of {', '.join(WINDOWS)}")
        if not kinds:
            return cls()
        kind = WINDOWS[kinds.pop()]
        if not sizes[kind]:
            raise IntegrityError(f"config.json: layer_types has {kind} windows, but their size is missing")
        return cls(kind, sizes[kind], tuple(one != "full_attention" for one in types))

    def fields(self) -> list[Field]:
        found = [fields.string("liquid.attention.window_type", self.kind)]
        if self.size:
            found.append(fields.u32("liquid.attention.sliding_window", self.size))
            found.append(fields.array("liquid.attention.sliding_window_pattern", self.layers, Type.BOOL))
        return found
