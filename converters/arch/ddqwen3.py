"""FlexiDepth over Qwen3 (`ddqwen3`) to GGUF architecture `liquid`.

As `ddllama`, with norms on q and k, which K gets too where it is all that a token leaves; halves stay in place.
"""

from __future__ import annotations

from ..registry import arch
from .ddllama import DDLlama


@arch("DDQwen3ForCausalLM")
class DDQwen3(DDLlama):
    base = "qwen3"
