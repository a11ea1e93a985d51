"""Gemma 3 under the trainer: the forward pass is transformers', whole and with parts skipped; every gate trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

from liquidcli import converters
from liquidcli.errors import UsageError
from liquidcli.gates import container
from liquidcli.gates.pack import read_pack
from liquidcli.gates.training.data import Row
from liquidcli.gates.training.judge import Judge
from liquidcli.gates.training.network import Base, Gates, Network, load_base
from liquidcli.gates.training.options import Options
from liquidcli.gates.training.result import read_gates
from liquidcli.gates.training.train import train
from liquidcli.gguf_file import open_gguf
from tests.hf_models import make_config, random_tokens, reference_logits, save_random

pytest.importorskip("transformers")

N_LAYER, N_TOKENS, N_VOCAB, ALWAYS = 7, 64, 264, 3
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_gemma(tmp_path_factory.mktemp("gemma"), {})


def test_a_state_and_norms_of_any_size_are_the_same_base(plain):
    base = load_base(plain[1])
    norms = [layer[name] for layer in base.layers for name in ("attn_norm", "ffn_norm")]
    assert base.units.state == 8 and max(base.units.norms.values()) > 1  # 8: the root of 64
    assert all(norm.square().mean().sqrt() <= 0.5 for norm in norms)


def skipping(gates: Gates, base: Base, tokens: list[int]) -> tuple[torch.Tensor, dict[tuple[int, str], torch.Tensor]]:
    """Logits, and who runs what."""
    network = Network(base, ALWAYS, len(tokens))
    with torch.no_grad():
        h, trace = network.gated(network.lower(torch.tensor([tokens]), 1), 1, gates)
    run = {(place.layer, place.scope): one[0] for place, one in zip(gates.places, trace.run, strict=True)}
    return network.final(h)[0] @ base.head.T, run


def masked(folder: Path, tokens: list[int], run: dict[tuple[int, str], torch.Tensor]) -> torch.Tensor:
    """By transformers, what tokens skip taken out of what its modules return."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for (il, scope), mask in run.items():
        layer, keep = model.model.layers[il], mask[None, :, None]
        if scope == "layer":
            layer.register_forward_hook(lambda _, given, out, keep=keep: torch.where(keep > 0, out, given[0]))
        else:
            post = layer.post_attention_layernorm if scope == "attn" else layer.post_feedforward_layernorm
            post.register_forward_hook(lambda _, given, out, keep=keep: out * keep)
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("scope", ["layer", "attn", "attn+ffn"])
def test_what_tokens_skip_adds_nothing(plain, scope):
    folder, gguf = plain
    base, tokens = load_base(gguf), random_tokens(N_TOKENS, N_VOCAB)
    gates = Gates(Options(scope=scope, layers=(1, 3, 5)).places(N_LAYER), base.shape.n_embd, 0)
    with torch.no_grad():
        gates.weight.normal_(generator=torch.Generator().manual_seed(1))
        gates.bias.zero_()
    found, run = skipping(gates, base, tokens)
    assert all(0.1 < one[ALWAYS:].mean() < 0.9 and one[:ALWAYS].all() for one in run.values())
    wanted = masked(folder, tokens, run)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


VARIANTS: dict[str, dict[str, Any]] = {
    "span-drop": {"span": 2, "kv": "drop", "rank": 2},
    "halves": {"scope": "attn+ffn", "n_gates": 4, "gate_lr": 0.01},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_gates_of_every_kind_train(plain, tmp_path, name):
    base, data = with_blind_features(plain[1], tmp_path / "base.gguf"), tmp_path / "data.jsonl"
    rows = [random_tokens(N_TOKENS, N_VOCAB, seed) for seed in range(40)]
    data.write_text("\n".join(json.dumps({"tokens": row}) for row in rows))
    o = Options(
        data=(str(data),), target=0.9, n_gates=2, adapter_size=32, harvest_tokens=600, epochs=2, tune_tokens=256,
        n_ctx=N_TOKENS, threads=1, always_run_tokens=ALWAYS, layers=(1, 2, 3, 4), device="cpu",
    )  # fmt: skip
    o = replace(o, **VARIANTS[name])
    report = train(base, tmp_path / "p.gguf", o)
    pack = read_pack(tmp_path / "p.gguf")
    assert all(np.isfinite(array).all() for array in pack.tensors.values()) and bool(pack.lora) == bool(o.rank)
    assert report["held_out"]["trained on"]["executed_fraction"] == pytest.approx(0.9, abs=0.04)
    if not o.rank:
        network = Network(load_base(base), ALWAYS, N_TOKENS)
        gates = read_gates(tmp_path / "p.gguf", network)
        judged = Judge(network, [Row(row) for row in rows[:8]], 1).score(gates)
        assert 0.7 < judged.executed_fraction < 1 and judged.kl < 1


def with_blind_features(path: Path, out: Path) -> Path:
    """Norms with zeros, as Gemma's have."""
    with open_gguf(path) as f:
        keys = {key: f.raw_value(key) for key in f.metadata}
        arrays = {name: np.array(f.array(name)) for name in f.tensors}
    for name in (name for name in arrays if name.endswith(("attn_norm.weight", "ffn_norm.weight"))):
        arrays[name][:3] = 0
    return write_arrays(out, keys, arrays)


def write_arrays(out: Path, keys: dict[str, bytes], arrays: dict[str, np.ndarray]) -> Path:
    tensors = [
        container.Tensor(name, one.shape[::-1], T.F32, one.nbytes, lambda one=one: one) for name, one in arrays.items()
    ]
    with out.open("wb") as file:
        container.write(file, keys, tensors)
    return out


def test_a_cap_on_the_logits_is_refused(tmp_path):
    _, gguf = save_gemma(tmp_path, {"final_logit_softcapping": 30.0})
    with pytest.raises(UsageError, match="final_logit_softcapping"):
        load_base(gguf)


def test_what_gemma_is_by_its_name_liquid_is_told_by_keys(plain, tmp_path):
    """Joined by nothing but keys: a sixth layer sees all, an own base rotates the others, gelu, a scaled embedding."""
    _, gguf = plain
    with open_gguf(gguf) as f:
        keys = {key.replace("gemma3.", "liquid."): f.raw_value(key) for key in f.metadata}
        arrays = {name: np.array(f.array(name)) for name in f.tensors}
    keys["general.architecture"] = container.value(V.STRING, "liquid")
    words = {"rope.type": "neox", "attention.qk_norm": "head", "attention.window_type": "sliding"}
    words |= {"feed_forward.activation": "gelu"}
    keys |= {f"liquid.{key}": container.value(V.STRING, word) for key, word in words.items()}
    keys["liquid.embedding_scale"] = container.value(V.FLOAT32, 8.0)
    keys["liquid.attention.scale"] = container.value(V.FLOAT32, 0.25)
    pattern = [il % 6 != 5 for il in range(N_LAYER)]
    keys["liquid.attention.sliding_window_pattern"] = container.array(V.BOOL, pattern)
    base = load_base(write_arrays(tmp_path / "liquid.gguf", keys, arrays))
    tokens = random_tokens(N_TOKENS, N_VOCAB)
    assert torch.equal(logits_of(base, tokens), logits_of(load_base(gguf), tokens))
