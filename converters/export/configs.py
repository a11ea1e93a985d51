"""A GGUF's keys back to config.json, one function for each architecture.

Knows transformers' spelling for Llama-shaped models, dense or with Mixtral's experts, Qwen and Gemma. `liquid` has
a file of its own. Tensors are left to the rows of `..arch`, which read what is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from liquidcli.errors import LiquidError, quote
from liquidcli.gguf_file import GGUFFile

from ..arch.gemma3_text import LAYERS_OF_27B, STOCK_PATTERN
from .keys import Keys
from .rope import rope_parameters, shortest

TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Target:
    """What a GGUF becomes: config.json without the tokenizer's part, and the names by which rows tell layouts apart."""

    config: dict[str, Any]
    present: frozenset[str] = frozenset()
    exact_gate: bool = False


def shared(keys: Keys, *, theta: float = 10000.0) -> dict[str, Any]:
    """What every Llama-shaped configuration has."""
    f = keys.file
    n_head, n_embd = keys.integer("attention.head_count"), keys.integer("embedding_length")
    if n_head < 1:
        raise keys.wrong("attention.head_count", n_head, "at least one head")
    head_dim = keys.integer("attention.key_length", n_embd // n_head)
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise keys.wrong("attention.value_length", keys.raw("attention.value_length"), f"{head_dim}, as for keys")
    keys.integer("vocab_size", None)
    keys.only("attention.causal", True, why="tokens see what came before them")
    return {
        "vocab_size": f.tensor("token_embd.weight").shape[-1],
        "hidden_size": n_embd,
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_head),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": shortest(keys.number("attention.layer_norm_rms_epsilon")),
        "rope_parameters": rope_parameters(keys, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in f.tensors,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def _llama(f: GGUFFile, keys: Keys) -> Target:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shared(keys),
        "intermediate_size": keys.integer("feed_forward_length"),
    }
    keys.only("attention.sliding_window", 0, why="Llama has no windows")
    if n_expert := keys.integer("expert_count", 0):
        return _mixtral(f, keys, config, n_expert)
    keys.only("expert_used_count", 0, why="there are no experts")
    config["attention_bias"] = "blk.0.attn_q.bias" in f.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in f.tensors
    return Target(config)


def _mixtral(f: GGUFFile, keys: Keys, config: dict[str, Any], n_expert: int) -> Target:
    size = f.tensor("blk.0.ffn_gate_exps.weight").shape[1]
    keys.only("expert_feed_forward_length", size, why="experts have the size of their tensors")
    own = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": size,
        "num_local_experts": n_expert,
        "num_experts_per_tok": keys.integer("expert_used_count"),
        "sliding_window": None,
    }
    present = [
        f"model.layers.{i}.block_sparse_moe.experts.{e}.w{part}.weight"
        for i in range(config["num_hidden_layers"])
        for e in range(n_expert)
        for part in (1, 2, 3)
    ]
    return Target({**config, **own}, frozenset(present))


def _qwen2(f: GGUFFile, keys: Keys) -> Target:
    return _qwen(keys, "Qwen2ForCausalLM", "qwen2")


def _qwen3(f: GGUFFile, keys: Keys) -> Target:
    target = _qwen(keys, "Qwen3ForCausalLM", "qwen3")
    target.config["attention_bias"] = "blk.0.attn_q.bias" in f.tensors
    return target


def _qwen(keys: Keys, architecture: str, model_type: str) -> Target:
    keys.only("attention.sliding_window", 0, why="llama.cpp computes none here")
    return Target(
        {
            "architectures": [architecture],
            "model_type": model_type,
            **shared(keys),
            "intermediate_size": keys.integer("feed_forward_length"),
            "use_sliding_window": False,
        }
    )


def _gemma3(f: GGUFFile, keys: Keys) -> Target:
    config = shared(keys, theta=1e6)
    n_layer, head_dim = config["num_hidden_layers"], config["head_dim"]
    windowed = keys.raw("attention.sliding_window_pattern", [(i + 1) % STOCK_PATTERN != 0 for i in range(n_layer)])
    if not isinstance(windowed, list) or len(windowed) != n_layer:
        raise keys.wrong("attention.sliding_window_pattern", windowed, "a list with one value for each layer")
    wide = n_layer == LAYERS_OF_27B
    size = keys.integer("attention.sliding_window", 0)
    cap = keys.number("final_logit_softcapping", 0.0)
    local = {"rope_type": "default", "rope_theta": shortest(keys.number("rope.freq_base_swa", 1e4))}
    del config["hidden_act"]
    own = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "intermediate_size": keys.integer("feed_forward_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"] if wide else head_dim,
        "sliding_window": size or None,
        "layer_types": [f"{'sliding' if size and one else 'full'}_attention" for one in windowed],
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
        "final_logit_softcapping": shortest(cap) if cap else None,
    }
    return Target({**config, **own})


def read_target(f: GGUFFile, keys: Keys) -> Target:
    known = _known()
    if f.architecture not in known:
        raise LiquidError(
            f"{f.path} has the architecture {quote(f.architecture)}, which is not exported;"
            f" {', '.join(sorted(known))} are"
        )
    return known[f.architecture](f, keys)


def _known() -> dict[str, Callable[[GGUFFile, Keys], Target]]:
    from .liquid import liquid_target

    return {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma3": _gemma3, "liquid": liquid_target}
