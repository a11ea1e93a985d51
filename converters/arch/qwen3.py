"""Qwen3 to GGUF architecture `qwen3`, or `liquid` for what that cannot: windows, a bias on the output, factors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from ..config import Config
from ..registry import Reason, arch
from .llama import Llama
from .qwen2 import Qwen2


@arch("Qwen3ForCausalLM")
class Qwen3(Qwen2):
    gguf_name = "qwen3"
    qk_norm = "head"
    defaults: ClassVar[dict[str, Any]] = {**Qwen2.defaults, "head_dim": 128}

    def __init__(self, config: Config, present: Collection[str] = (), *, exact_gate: bool = False) -> None:
        super().__init__(config, present)
        self.writes_lengths = True

    def _biases(self, config: Config) -> tuple[bool, bool, bool]:
        return self.hparams.attention_bias, self.hparams.attention_bias, False

    def beyond_stock(self) -> list[Reason]:
        found = Llama.beyond_stock(self)
        if self.out_bias:
            found.append(Reason("has no bias on the attention's output", loads=False))
        return found
