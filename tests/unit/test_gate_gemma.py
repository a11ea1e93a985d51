"""Gemma 3 under the trainer: its forward pass is transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from liquidcli import converters
from liquidcli.errors import UsageError
from liquidcli.gates.network import Base, Network, load_base
from tests.hf_models import make_config, random_tokens, reference_logits, save_random

pytest.importorskip("transformers")

N_LAYER, N_TOKENS, N_VOCAB = 7, 64, 264
FULL, SLIDING = "full_attention", "sliding_attention"
LOCAL = {"rope_type": "default", "rope_theta": 500.0}
SCALED = {"rope_type": "linear", "rope_theta": 1e5, "factor": 3.0}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "scaled": {"rope_parameters": {FULL: SCALED, SLIDING: LOCAL}},
    "no-windows": {"layer_types": [FULL] * N_LAYER},
    "pattern": {"layer_types": [FULL, SLIDING, FULL], "num_hidden_layers": 3},
    "scalar": {"query_pre_attn_scalar": 40, "head_dim": 32},
    "62": {"num_hidden_layers": 62, "num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 32},
}


def save_gemma(folder: Path, words: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint folder and what it converts to."""
    sizes = {"vocab_size": N_VOCAB, "head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": N_LAYER}
    config = make_config("gemma3_text", **{**sizes, "sliding_window": 24, **words})
    saved = save_random(config, folder / "hf")
    converters.run(converters.plan(saved, outtype="f32"), folder / "base.gguf")
    return saved, folder / "base.gguf"


def logits_of(base: Base, tokens: list[int]) -> torch.Tensor:  # [T, n_vocab]
    network = Network(base, 0, len(tokens))
    with torch.no_grad():
        return network.final(network.full(network.lower(torch.tensor([tokens]), 1), 1))[0] @ base.head.T


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_pass_is_transformers(name, tmp_path):
    folder, gguf = save_gemma(tmp_path, MODELS[name])
    tokens = random_tokens(N_TOKENS, N_VOCAB)
    wanted = torch.from_numpy(reference_logits(folder, tokens))
    torch.testing.assert_close(logits_of(load_base(gguf), tokens), wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max())


def test_a_cap_on_the_logits_is_refused(tmp_path):
    _, gguf = save_gemma(tmp_path, {"final_logit_softcapping": 30.0})
    with pytest.raises(UsageError, match="final_logit_softcapping"):
        load_base(gguf)
