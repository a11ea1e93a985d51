"""Tiny random models by transformers: their folders, their logits, and how far the library's are from them.

Knows transformers and the engine, no architecture: the caller hands over the configuration. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liquidcli import converters
from liquidcli.runtime.engine import Engine
from tests.hf_folders import byte_level_tokenizer, write_json

CLOSE = 1e-3  # max |difference| / max |reference|, what two float32 implementations may differ by


def make_config(model_type: str, **words: Any) -> Any:
    """transformers' own, with sizes that compute in milliseconds."""
    from transformers import AutoConfig

    small = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    return AutoConfig.for_model(model_type, **{**small, **words})


def save_random(
    config: Any, folder: Path, seed: int = 0, dtype: str = "float32", *, kind: Any = None, **options: Any
) -> Path:
    """A folder with weights of unit-sized activations; `kind` is the model class where AutoModelForCausalLM errs.

    `options` are save_pretrained's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = kind(config) if kind else AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _randomize(name, weight)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **options)
    write_json(folder / "tokenizer.json", byte_level_tokenizer())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": "{{ messages }}"})
    return folder


def _randomize(name: str, weight: Any) -> None:
    import torch

    if "norm" in name:
        weight.add_(0.2 * torch.randn_like(weight))  # ones, or zeros where the model adds the one
    elif name.endswith("bias"):
        weight.normal_(std=0.3)
    elif "embed_tokens" in name:
        weight.normal_()
    elif name.endswith("q_proj.weight"):
        weight.normal_(std=2 * weight.shape[-1] ** -0.5)  # sharp attention: positions must matter
    else:
        weight.normal_(std=weight.shape[-1] ** -0.5)


def random_tokens(n_tokens: int, n_vocab: int = 300, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, n_vocab, n_tokens).tolist()


def reference_logits(folder: Path, tokens: list[int], kind: Any = None) -> np.ndarray:  # [n_tokens, n_vocab] float32
    """By transformers: float32, eager attention, all tokens at once."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    loader = kind or AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def native_logits(gguf: Path, tokens: list[int], n_prompt: int | None = None) -> np.ndarray:
    """By the library in float32: the first `n_prompt` tokens at once (all of them if None), the others one by one."""
    n_prompt = len(tokens) if n_prompt is None else n_prompt
    exact = {"type_k": "f32", "type_v": "f32", "flash_attn": "off"}
    with Engine.load(gguf, n_ctx=max(128, len(tokens)), n_threads=1, **exact) as engine:
        rows = [np.array(engine.decode(tokens[:n_prompt], logits="all"))] if n_prompt else []
        rows += [np.array(engine.decode([token], logits="all")) for token in tokens[n_prompt:]]
    return np.concatenate(rows)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """max |difference| / max |wanted|; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@dataclass(frozen=True)
class Agreement:
    """Relative differences to transformers, and what the conversion was."""

    prompt: float
    decode: float
    architecture: str  # of the GGUF
    warnings: tuple[str, ...]

    @property
    def worst(self) -> float:
        return max(self.prompt, self.decode)


def agreement(folder: Path, tokens: list[int], kind: Any = None) -> Agreement:
    """Converts `folder` to F32 beside it and compares the prompt, then a decode from an eighth of it on."""
    wanted = reference_logits(folder, tokens, kind)
    plan = converters.plan(folder, "f32")
    gguf = converters.run(plan, folder.with_suffix(".gguf")).output
    prompt, decode = (relative(native_logits(gguf, tokens, n), wanted) for n in (None, len(tokens) // 8))
    return Agreement(prompt, decode, plan.architecture, plan.warnings)
