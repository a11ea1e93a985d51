"""A loaded model and its vocabulary: text to tokens, tokens to bytes, what is special.

Knows llama_model and llama_vocab. Knows nothing of contexts, templates or sampling.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import IntegrityError, Interrupted, LiquidError, MemoryFitError
from . import depth, library
from .interrupt import ctrl_c

_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4  # enum llama_token_attr
_PIECE_BYTES = 256
_MAX_TEXT_BYTES = (1 << 31) - 1


class Model:
    """Weights and vocabulary; `close` gives them back."""

    def __init__(
        self,
        path: Path,
        *,
        n_gpu_layers: int = -1,
        vocab_only: bool = False,
        progress: Callable[[float], None] | None = None,  # told the share that is loaded
    ) -> None:
        self._lib = library.load()
        self.path = path
        self.pointer = self._load(n_gpu_layers, vocab_only, progress)
        self.vocab = self._lib.llama_model_get_vocab(self.pointer)
        self.depth = None if vocab_only else depth.model_info(self.pointer)
        self.gates = depth.gates(self.pointer, self.depth.n_gate) if self.depth else []
        self.n_layer: int = self._lib.llama_model_n_layer(self.pointer)
        self.n_vocab: int = self._lib.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = self._lib.llama_model_n_ctx_train(self.pointer)
        self.n_swa: int = self._lib.llama_model_n_swa(self.pointer)
        self.n_params: int = self._lib.llama_model_n_params(self.pointer)
        self.size_bytes: int = self._lib.llama_model_size(self.pointer)  # of the tensors
        self.bos: int = self._lib.llama_vocab_bos(self.vocab)  # -1: none
        self.eos: int = self._lib.llama_vocab_eos(self.vocab)
        self.add_bos: bool = self._lib.llama_vocab_get_add_bos(self.vocab)

    def _load(self, n_gpu_layers: int, vocab_only: bool, progress: Callable[[float], None] | None) -> int:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.vocab_only = vocab_only

        def step(done: float, _data: object) -> bool:
            if progress:
                progress(done)
            return not ctrl_c.pressed

        params.progress_callback = callback = self._lib.llama_progress_callback(step)
        library.log.reset()
        with ctrl_c.held():
            pointer = self._lib.llama_model_load_from_file(os.fsencode(self.path), params)
        stopped = ctrl_c.pressed
        del callback
        if pointer and not stopped:
            return pointer
        if pointer:
            self._lib.llama_model_free(pointer)
        if stopped:
            raise Interrupted("stopped while loading the model")
        raise _load_failure(self.path, library.log.complaint())

    def close(self) -> None:
        if self.pointer:
            self._lib.llama_model_free(self.pointer)
            self.pointer = 0

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")
        if len(raw) > _MAX_TEXT_BYTES:
            raise LiquidError(f"the text has {len(raw)} bytes, more than one call takes")
        room = len(raw) + 8
        tokens = (ctypes.c_int32 * room)()
        n = self._lib.llama_tokenize(self.vocab, raw, len(raw), tokens, room, add_special, parse_special)
        if n < 0:
            tokens = (ctypes.c_int32 * -n)()
            n = self._lib.llama_tokenize(self.vocab, raw, len(raw), tokens, -n, add_special, parse_special)
        if n < 0:
            raise LiquidError("the library cannot turn this text into tokens")
        return tokens[:n]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens are empty unless `special`."""
        room = _PIECE_BYTES
        buffer = ctypes.create_string_buffer(room)
        n = self._lib.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._lib.llama_token_to_piece(self.vocab, token, buffer, -n, 0, special)
        return buffer.raw[: max(n, 0)]

    def is_eog(self, token: int) -> bool:
        return bool(self._lib.llama_vocab_is_eog(self.vocab, token))

    @functools.cached_property
    def eog_tokens(self) -> list[int]:
        return [token for token in range(self.n_vocab) if self._lib.llama_vocab_is_eog(self.vocab, token)]

    @functools.cached_property
    def _attributes(self) -> list[int]:
        return [self._lib.llama_vocab_get_attr(self.vocab, token) for token in range(self.n_vocab)]

    @functools.cached_property
    def control_texts(self) -> list[str]:
        """Texts that become control tokens wherever special tokens are parsed."""
        return self._texts(_CONTROL | _UNKNOWN)

    @functools.cached_property
    def user_defined_texts(self) -> list[str]:
        """Texts that become one token everywhere, special parsing or not."""
        return self._texts(_USER_DEFINED)

    def _texts(self, mask: int) -> list[str]:
        found = (
            self._lib.llama_vocab_get_text(self.vocab, i) for i, attr in enumerate(self._attributes) if attr & mask
        )
        return [text.decode("utf-8", "replace") for text in found if text]

    def builtin_template(self, name: str, messages: list[dict[str, str]], add_assistant: bool) -> str | None:
        """`messages` in one of the library's own formats (chatml, llama3 ...); None for a name it does not know."""
        raw = [(message["role"].encode(), message["content"].encode("utf-8", "replace")) for message in messages]
        chat = (self._lib.llama_chat_message * len(raw))(*(self._lib.llama_chat_message(*pair) for pair in raw))
        room = 1024 + sum(64 + 2 * len(content) for _, content in raw)
        buffer = ctypes.create_string_buffer(room)
        n = self._lib.llama_chat_apply_template(name.encode(), chat, len(raw), add_assistant, buffer, room)
        if n < 0 or n > room:
            return None
        return buffer.raw[:n].decode("utf-8", "replace")


def _load_failure(path: Path, complaint: str) -> LiquidError:
    said = complaint.removeprefix("error loading model: ") or "it gave no reason"
    if "alloc" in said or "memory" in said:
        return MemoryFitError(f"{path} does not fit in memory: {said}")
    return IntegrityError(f"llama.cpp cannot load {path}: {said}")
