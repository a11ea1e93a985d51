"""FlexiDepth over Qwen3 (`ddqwen3`) to GGUF architecture `liquid`: `ddllama` with q/k norms, halves left in place."""

from __future__ import annotations

from ..registry import arch
from .ddllama import DDLlama


@arch("DDQwen3ForCausalLM")
class DDQwen3(DDLlama):
    base = "qwen3"
