"""Makes the tiny random models of tests.tiny_families: weights from a seed, gates of unit spread, Hugging Face folders.

Knows the reference and the tokenizers library; tests.tiny_gguf writes the same models as GGUF without the converter.
"""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from liquidcli.reference import LiquidConfig, LiquidForCausalLM, save_pretrained
from tests.tiny_families import BASE, FAMILIES

CORPUS = "the water of the river runs deeper where the stones are hard and the river is slow; the rest of it is light. "
SPECIAL = ("<|bos|>", "<|eos|>")
CALIBRATION_TOKENS = 512
_made: dict[tuple[str, int], LiquidForCausalLM] = {}


def make_config(family: str | dict[str, Any]) -> LiquidConfig:
    keys = FAMILIES[family] if isinstance(family, str) else family
    return LiquidConfig(**{**BASE, "bos_token_id": 0, "eos_token_id": 1, **keys})


def make_model(family: str | dict[str, Any], seed: int = 7) -> LiquidForCausalLM:
    """Random weights of unit-sized activations; each gate's z has mean logit(threshold) and spread 1."""
    config = make_config(family)
    if (key := (repr(config), seed)) not in _made:
        _made[key] = _random_model(config, seed)
    return deepcopy(_made[key])


def _random_model(config: LiquidConfig, seed: int) -> LiquidForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = LiquidForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.copy_(1 + 0.2 * torch.randn_like(weight))
        elif name.endswith(".bias"):
            weight.normal_(std=0.3)
        elif name.endswith("embed_tokens.weight"):
            weight.normal_()
        elif name.endswith("q_proj.weight"):
            weight.normal_(std=2 * weight.shape[-1] ** -0.5)  # sharp attention: positions must matter
        else:
            weight.normal_(std=weight.shape[-2 if ".experts." in name else -1] ** -0.5)
    tokens = random_tokens(model.config, CALIBRATION_TOKENS // 64, 64, seed)
    for gate in range(len(model.config.gates)):
        _fit_gate(model, gate, tokens)
    return model


def _fit_gate(model: LiquidForCausalLM, gate: int, tokens: torch.Tensor) -> None:
    """Shifts and scales one gate's last vector, given the gates before it and the tokens that reach it."""
    place = model.config.gates[gate]
    head = getattr(model.model.layers[place.layer], place.stem).head
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    reached = ~model(tokens).trace.w[..., gate].flatten().isnan()
    handle.remove()
    features = seen[0][reached]  # [rows, width]
    mean = features.mean(0)
    middle = torch.logit(torch.tensor(model.config.depth.threshold)).item()
    head.weight -= (head.weight @ mean)[:, None] * mean / mean.square().sum()
    head.weight /= (features @ head.weight.T).std()
    if head.bias is not None:
        head.bias.fill_(middle)
    elif middle:
        head.weight += middle * mean / mean.square().sum()


def random_tokens(config: LiquidConfig, n_seq: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), config.vocab_size, (n_seq, n_tokens), generator=generator)


@lru_cache
def make_tokenizer(vocab_size: int = BASE["vocab_size"]) -> Tokenizer:
    """GPT-2's kind of byte-level BPE, trained on a sentence, filled up with unused tokens to `vocab_size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"special_tokens": list(SPECIAL), "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=vocab_size, **options))
    tokenizer.add_tokens([f"<|unused{i}|>" for i in range(vocab_size - tokenizer.get_vocab_size())])
    return tokenizer


def save_checkpoint(model: LiquidForCausalLM, folder: Path, **options: Any) -> Path:
    """A Hugging Face folder: config.json, safetensors, tokenizer.json, tokenizer_config.json."""
    save_pretrained(model, folder, **options)
    make_tokenizer(model.config.vocab_size).save(str(folder / "tokenizer.json"))
    names = dict(zip(("bos_token", "eos_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
