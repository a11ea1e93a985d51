"""The plain models under gated checkpoints, in the words of a `liquid` configuration.

Knows which families are trained with gates. What transformers leaves unsaid of each is in its arch file; no gates here.
"""

from __future__ import annotations

from typing import Any

from .arch.llama import Llama
from .arch.mistral import Mistral
from .arch.qwen2 import Qwen2
from .arch.qwen3 import Qwen3
from .config import Config

BASES: dict[str, type[Llama]] = {"llama": Llama, "mistral": Mistral, "qwen2": Qwen2, "qwen3": Qwen3}


def base_words(config: Config, base: str) -> dict[str, Any]:
    """What a `liquid` configuration says more than config.json of this base."""
    return {**BASES[base](config).liquid_words(), "use_sliding_window": None}
