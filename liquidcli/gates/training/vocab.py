"""A base's tokenizer and chat template, read from its GGUF through llama.cpp with the weights left on the disk.

Knows text and token ids. Knows nothing of tensors.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import ModuleType

from ...errors import LiquidError


@functools.cache
def _silence(api: ModuleType) -> object:
    """A callback that the library may call as long as the process lives."""
    return api.llama_log_callback(lambda level, text, data: None)


class Vocabulary:
    """Tokenize, detokenize and wrap in the chat template, as the runtime does. The library is loaded at the first
    use."""

    def __init__(self, path: Path, *, weights: bool = False) -> None:
        self.path, self.weights = path, weights

    @functools.cached_property
    def api(self) -> ModuleType:
        import llama_cpp

        llama_cpp.llama_log_set(_silence(llama_cpp), None)
        llama_cpp.llama_backend_init()
        return llama_cpp

    @functools.cached_property
    def model(self) -> object:
        params = self.api.llama_model_default_params()
        params.vocab_only = not self.weights
        model = self.api.llama_model_load_from_file(str(self.path).encode(), params)
        if not model:
            raise LiquidError(f"llama.cpp could not load {self.path}", hint=f"liquid verify {self.path}")
        return model

    @functools.cached_property
    def vocab(self) -> object:
        return self.api.llama_model_get_vocab(self.model)

    @property
    def n_vocab(self) -> int:
        return self.api.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        data = text.encode()
        buffer = (self.api.llama_token * (len(data) + 8))()
        n = self.api.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), special, special)
        return list(buffer[:n])

    def opening(self) -> list[int]:
        """What a text begins with: BOS where the vocabulary wants one."""
        wants = self.api.llama_vocab_get_add_bos(self.vocab)
        return [self.api.llama_vocab_bos(self.vocab)] if wants else []

    def text(self, tokens: list[int]) -> str:
        ids = (self.api.llama_token * len(tokens))(*tokens)
        buffer = bytearray(16 * len(tokens) + 64)
        view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        n = self.api.llama_detokenize(self.vocab, ids, len(tokens), view, len(buffer), False, False)
        return bytes(buffer[: max(n, 0)]).decode(errors="replace")

    def is_end(self, token: int) -> bool:
        return bool(self.api.llama_vocab_is_eog(self.vocab, token))

    def chat(self, question: str, answer: str | None = None) -> str:
        """`question`, ready to be answered, or with its `answer`, in the model's own chat template; plain text where
        it has none."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self.api.llama_model_chat_template(self.model, None)
        if not template:
            return f"{question}\n\n{answer or ''}"
        eos = self.api.llama_vocab_get_text(self.vocab, self.api.llama_vocab_eos(self.vocab)) or b""
        asks = answer is None
        formatter = Jinja2ChatFormatter(
            template.decode(), eos_token=eos.decode(errors="replace"), bos_token="", add_generation_prompt=asks
        )
        answers = [] if asks else [{"role": "assistant", "content": answer}]
        return formatter(messages=[{"role": "user", "content": question}, *answers]).prompt

    def close(self) -> None:
        if "model" in self.__dict__:
            self.api.llama_model_free(self.model)
