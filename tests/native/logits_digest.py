"""Prints a digest of a model's logits, bit for bit: `python logits_digest.py MODEL [full]`.

Uses llama.h alone, so that it runs on the unpatched library too (LLAMA_CPP_LIB_PATH chooses); with `full`, the patched
library's depth control. A prompt in two ubatches, then single tokens, on two threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys

import llama_cpp as api
import numpy as np

N_PROMPT, N_SINGLE = 96, 24
FULL = 1


def digest(path: str, full: bool) -> str:
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 128, 64
    params.n_threads = params.n_threads_batch = 2
    context = api.llama_init_from_model(model, params)
    if full:
        set_depth = api.llama_cpp._lib.liquid_set_depth
        set_depth.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_float]
        assert set_depth(context, FULL, 0.0) == 0
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    tokens = np.random.default_rng(7).integers(0, n_vocab, N_PROMPT + N_SINGLE)
    seen = hashlib.sha256()
    for step in [tokens[:N_PROMPT], *np.split(tokens[N_PROMPT:], N_SINGLE)]:
        ids = (ctypes.c_int32 * len(step))(*step.tolist())
        assert api.llama_decode(context, api.llama_batch_get_one(ids, len(step))) == 0
        seen.update(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), shape=(n_vocab,)).tobytes())
    api.llama_free(context)
    api.llama_model_free(model)
    return seen.hexdigest()


if __name__ == "__main__":
    api.llama_log_set(log := api.llama_log_callback(lambda *_: None), ctypes.c_void_p(0))
    print(digest(sys.argv[1], sys.argv[2:] == ["full"]))
