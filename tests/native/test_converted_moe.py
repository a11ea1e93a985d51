"""Mixtures converted to F32 compute what transformers computes, token by token too; stock files would not always.

Configurations are varied on purpose: each says which architecture it must become. Where that is `liquid`, the file that
llama.cpp's own architecture would be is made too, and shown to be wrong. Routers are never near a tie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liquidcli import converters
from liquidcli.converters.mixture import Mixture
from liquidcli.errors import LiquidError
from tests.hf_models import (
    CLOSE,
    agreement,
    make_config,
    native_logits,
    random_tokens,
    reference_logits,
    relative,
    save_random,
)

N_TOKENS = 64
SAFE = 3e-5  # between the logits of the last expert taken and the first one left out
WRONG = 0.01  # a file that computes something else is off by more than this
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 8.0, "beta_slow": 2.0,
}  # fmt: skip
NONE = [1, 1, 1, 1]
FULL = ["full_attention"] * 4
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3, "num_key_value_heads": 4},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 80, "head_dim": 16},
}
# family, what differs from FAMILIES, the architecture
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "mixtral": ("mixtral", {}, "llama"),
    "mixtral-tied": ("mixtral", {"head_dim": 32, "tie_word_embeddings": True, "num_experts_per_tok": 1}, "llama"),
    "mixtral-llama3": ("mixtral", {"rope_parameters": LLAMA3}, "llama"),
    "mixtral-wide-window": ("mixtral", {"sliding_window": 256}, "llama"),
    "mixtral-window": ("mixtral", {"sliding_window": 24}, "liquid"),
    "qwen3": ("qwen3_moe", {"head_dim": 32}, "qwen3moe"),
    "qwen3-raw-weights": ("qwen3_moe", {"norm_topk_prob": False}, "liquid"),
    "qwen3-sparse": ("qwen3_moe", {"decoder_sparse_step": 2}, "liquid"),
    "qwen3-dense-layers": ("qwen3_moe", {"mlp_only_layers": [0, 3], "norm_topk_prob": False}, "liquid"),
    "qwen3-sparse-dense": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [1]}, "liquid"),
    "qwen3-biased": ("qwen3_moe", {"attention_bias": True}, "liquid"),
    "qwen3-window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}, "liquid"),
    "qwen3-llama3": ("qwen3_moe", {"rope_parameters": LLAMA3}, "liquid"),
    "qwen3-yarn": ("qwen3_moe", {"rope_parameters": YARN}, "liquid"),
    "olmoe": ("olmoe", {}, "olmoe"),
    "olmoe-eps": ("olmoe", {"rms_norm_eps": 0.01}, "olmoe"),
    "olmoe-renormalised": ("olmoe", {"norm_topk_prob": True}, "liquid"),
    "olmoe-grouped": ("olmoe", {"num_key_value_heads": 2}, "liquid"),
    "olmoe-tied": ("olmoe", {"tie_word_embeddings": True}, "liquid"),
    "llama4": ("llama4_text", {}, "llama4"),
    "llama4-maverick": ("llama4_text", {"interleave_moe_layer_step": 2}, "llama4"),
    "llama4-scout": ("llama4_text", {"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "llama4"),
    "llama4-two-experts": ("llama4_text", {"num_experts_per_tok": 2}, "llama4"),
    "llama4-chunks": ("llama4_text", {"attention_chunk_size": 24}, "liquid"),
    "llama4-temperature": ("llama4_text", {"floor_scale": 8, "attn_scale": 0.4}, "liquid"),
    "llama4-no-temperature": ("llama4_text", {"attn_temperature_tuning": False}, "liquid"),
    "llama4-interval": ("llama4_text", {"no_rope_layer_interval": 2}, "liquid"),
    "llama4-no-rope-layers": ("llama4_text", {"no_rope_layers": [0, 1, 1, 0]}, "liquid"),
    "llama4-rope-everywhere": ("llama4_text", {"no_rope_layers": NONE, "layer_types": FULL}, "liquid"),
    "llama4-no-norm": ("llama4_text", {"use_qk_norm": False}, "liquid"),
    "llama4-128-experts": ("llama4_text", {"num_local_experts": 128, "use_qk_norm": False}, "llama4"),
    "llama4-moe-layers": ("llama4_text", {"moe_layers": [0, 3]}, "liquid"),
    "llama4-biased": ("llama4_text", {"attention_bias": True}, "liquid"),
    "llama4-short": ("llama4_text", {"num_hidden_layers": 2}, "liquid"),
    "llama4-everything": (
        "llama4_text",
        {
            "moe_layers": [1, 2], "no_rope_layers": [1, 0, 0, 1], "attention_chunk_size": 20, "floor_scale": 16,
            "attn_scale": 0.2, "num_experts_per_tok": 2, "attention_bias": True, "rope_parameters": YARN,
            "layer_types": ["full_attention", "chunked_attention", "full_attention", "chunked_attention"],
        },
        "liquid",
    ),
}  # fmt: skip
# liquid cases whose stock file loads
SILENT = (
    "mixtral-window", "qwen3-raw-weights", "qwen3-window", "olmoe-renormalised", "llama4-chunks", "llama4-temperature",
    "llama4-interval", "llama4-no-rope-layers", "llama4-no-norm",
)  # fmt: skip
# and those it refuses
LOUD = ("qwen3-sparse", "qwen3-dense-layers", "qwen3-biased", "olmoe-grouped", "olmoe-tied", "llama4-moe-layers",
        "llama4-biased")  # fmt: skip


def words_of(name: str) -> dict[str, Any]:
    family, words, _ = CASES[name]
    return {"num_hidden_layers": 4, **FAMILIES[family], **words}


def write(name: str, folder: Path, **options: Any) -> Path:
    return save_random(make_config(CASES[name][0], **words_of(name)), folder, **options)


def router_margin(folder: Path, tokens: list[int]) -> float:
    """The smallest distance of two logits between which a router decides."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    margins = []

    def look(router: Any, inputs: tuple[Any, ...]) -> None:
        logits = torch.sort(inputs[0].reshape(-1, router.weight.shape[1]) @ router.weight.T, descending=True).values
        margins.append(float((logits[:, router.top_k - 1] - logits[:, router.top_k]).min()))

    for module in model.modules():
        if hasattr(module, "top_k") and hasattr(module, "weight"):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return min(margins)


def stock_file(folder: Path) -> Path:
    """The folder as llama.cpp's own architecture, whatever that leaves out."""
    plan = converters.plan(folder, "f32", stock=True)
    assert plan.architecture != "liquid"
    return converters.run(plan, folder.with_name("stock.gguf")).output


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder, tokens = write(name, tmp_path / "m"), random_tokens(N_TOKENS)
    assert router_margin(folder, tokens) > SAFE
    found = agreement(folder, tokens)
    assert found.architecture == CASES[name][2]
    assert [line for line in found.warnings if "not known here" in line] == []
    assert len(found.warnings) == (found.architecture == "liquid")
    assert found.worst <= CLOSE


@pytest.mark.parametrize("name", SILENT)
def test_the_stock_architecture_would_be_wrong(name: str, tmp_path: Path) -> None:
    folder, tokens = write(name, tmp_path / "m"), random_tokens(N_TOKENS)
    stock = stock_file(folder)
    assert relative(native_logits(stock, tokens), reference_logits(folder, tokens)) > WRONG


@pytest.mark.parametrize("name", LOUD)
def test_the_stock_architecture_would_not_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(name, tmp_path / "m")
    with pytest.raises(LiquidError, match=r"--stock: llama\.cpp's `\w+` cannot load this model: it "):
        stock_file(folder)
    for kind in (Mixture, *Mixture.__subclasses__()):
        monkeypatch.setattr(kind, "beyond_stock", lambda self: [])
    stock = stock_file(folder)
    with pytest.raises(LiquidError):
        native_logits(stock, random_tokens(4))


@pytest.mark.parametrize("name", ["mixtral", "qwen3-raw-weights", "olmoe"])
def test_fused_experts_are_the_same_file(name: str, tmp_path: Path) -> None:
    files = []
    for folder, options in ((tmp_path / "apart", {}), (tmp_path / "fused", {"save_original_format": False})):
        plan = converters.plan(write(name, folder, **options), "f32", name="model")
        files.append(converters.run(plan, folder.with_suffix(".gguf")).output.read_bytes())
        fused = any("experts.gate_up_proj" in source.name for one in plan.outputs for source in one.sources)
        assert fused is bool(options)
    assert files[0] == files[1]


def test_the_text_part_of_the_multimodal_model(tmp_path: Path) -> None:
    from transformers import AutoConfig, Llama4ForConditionalGeneration

    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
        "projector_output_dim": 32,
    }  # fmt: skip
    words = {**FAMILIES["llama4_text"], "num_hidden_layers": 4, "attention_chunk_size": 24}
    text = make_config("llama4_text", **words).to_dict()
    config = AutoConfig.for_model("llama4", text_config=text, vision_config=vision)
    folder = save_random(config, tmp_path / "m", kind=Llama4ForConditionalGeneration)
    found = agreement(folder, random_tokens(N_TOKENS), Llama4ForConditionalGeneration)
    assert found.architecture == "liquid" and found.worst <= CLOSE
