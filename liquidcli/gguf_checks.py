"""What must hold of a model file before llama.cpp is given it: a wrong file ends in a sentence, never in an abort().

Knows hyper-parameters, and for llama-like files (`llama`, `liquid`) the tensors and shapes that follow from them. Knows
nothing of the container (`gguf_parse` checked that). Tokenizers and depth keys have files of their own.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFValueType

from .errors import IntegrityError, quote
from .gguf_checks_depth import check_depth
from .gguf_checks_liquid import check_attention_keys, expert_layers
from .gguf_checks_tokenizer import check_tokenizer

if TYPE_CHECKING:
    from .gguf_file import GGUFFile

LLAMA_LIKE = frozenset({"llama", "liquid"})
# Known to the pinned llama.cpp, not yet to the gguf package.
_NEWER = frozenset((
    "bailingmoe3", "cohere2moe", "deepseek32", "deepseek4", "dflash", "dots3note", "eagle3", "gemma4-assistant",
    "glm5-next", "granite_swa", "graniteswitch", "hrm_text", "hy_v3", "hy_v4", "kimi-k3", "laguna", "maple", "mellum",
    "minimax-01", "minimax-m3", "muse-glimmer", "nanbeige", "pockettts", "qwen3tts", "qwen4exp", "spark2_5", "talkie",
))  # fmt: skip
KNOWN_ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values()) | _NEWER | {"liquid"}
_MAX_LAYERS = 512
_MAX_EXPERTS = 1024
_MAX_CONTEXT = 1 << 30
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 24
_BUFFER_ALIGNMENT = 32  # TENSOR_ALIGNMENT of ggml, whatever general.alignment says
_WHOLE_ROTATION = ("qwen2", "qwen3", "qwen3moe", "olmoe")  # their graphs assert it
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NOT_FOR_PRODUCTS = frozenset(GGMLQuantizationType[name] for name in ("I8", "I16", "I32", "I64", "F64"))
_LAYER_NAME = re.compile(r"blk\.([0-9]{1,9})\.")


def check_loadable(f: GGUFFile, *, need_tokenizer: bool = True) -> None:
    """Raise IntegrityError, in one sentence, for the first thing that would stop or crash llama.cpp on `f`.

    `need_tokenizer=False` lets a file without one pass; such a model takes token ids only.
    """
    if f.architecture not in KNOWN_ARCHITECTURES:
        _fail(f, f"the architecture {quote(f.architecture)} is not known to llama.cpp")
    if f.metadata.get("general.type", "model") == "adapter":
        hint = "liquid gates apply BASE.gguf GATES.gguf -o OUT.gguf"
        _fail(f, "this is an adapter or a gate pack, not a model", hint)
    _check_packed(f)
    if not f.tensors:
        _fail(f, "there is no tensor in it")
    n_layer = _check_sizes(f)
    _check_experts(f)
    _check_rope(f)
    check_tokenizer(f, need_tokenizer)
    if f.architecture == "liquid":
        check_attention_keys(f, n_layer)
    if f.architecture in LLAMA_LIKE:
        _check_llama_like(f, n_layer)
    if f.architecture in _WHOLE_ROTATION:
        _check_whole_rotation(f, n_layer)
    if f.architecture == "liquid":
        check_depth(f, n_layer)


def _fail(f: GGUFFile, what: str, hint: str | None = None) -> NoReturn:
    raise IntegrityError(f"{f.path}: {what}", hint=hint)


def _key(f: GGUFFile, name: str) -> Any:
    return f.metadata.get(f"{f.architecture}.{name}")


def u32(f: GGUFFile, name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number under the architecture's prefix; `default` None means that it must be there."""
    key = f"{f.architecture}.{name}"
    if key not in f.metadata and default is not None:
        return default
    value = f.metadata.get(key)
    if value is None or f.metadata_types[key] != (GGUFValueType.UINT32,):
        _fail(f, f"{key} is {'missing' if value is None else quote(value)}, a u32 was expected")
    if not low <= value <= high:
        _fail(f, f"{key} is {value}, {low} to {high} was expected")
    return value


def _per_layer(f: GGUFFile, name: str, n_layer: int, default: int | None = None) -> list[int]:
    """A whole number, or one per layer."""
    value = _key(f, name)
    if not isinstance(value, list):
        return [u32(f, name, 1, _MAX_WIDTH, default)] * n_layer
    if len(value) != n_layer or not all(isinstance(v, int) and 0 <= v <= _MAX_WIDTH for v in value):
        _fail(f, f"{f.architecture}.{name} has {len(value)} entries for {n_layer} layers, or one that is no size")
    return value


def _positive(f: GGUFFile, name: str, default: float | None) -> float:
    key = f"{f.architecture}.{name}"
    value = f.metadata.get(key, default)
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        _fail(f, f"{key} is {'missing' if value is None else quote(value)}, a number above zero was expected")
    return value


def _check_packed(f: GGUFFile) -> None:
    """llama.cpp wants the data of each file back to back, in the order of the descriptions."""
    ends: dict[int, int] = {}
    for info in f.tensors.values():
        expected = ends.get(info.shard)
        if expected is None and info.offset % _BUFFER_ALIGNMENT:
            _fail(f, f"the data begins at byte {info.offset}, which is no multiple of {_BUFFER_ALIGNMENT}")
        if expected is not None and info.offset != expected:
            _fail(f, f"tensor {quote(info.name)} does not follow the one before it ({info.offset}, not {expected})")
        ends[info.shard] = info.offset + -(-info.size_bytes // f.alignment) * f.alignment


def _check_sizes(f: GGUFFile) -> int:
    n_layer = u32(f, "block_count", 1, _MAX_LAYERS)
    u32(f, "context_length", 1, _MAX_CONTEXT)
    u32(f, "embedding_length", 1, _MAX_WIDTH)
    for name, info in f.tensors.items():
        layer = _layer_of(name)
        if layer is not None and layer >= n_layer:
            _fail(f, f"there is a tensor {quote(name)}, but {f.architecture}.block_count is {n_layer}")
        is_matrix = len(info.shape) > 1 and name.endswith(".weight")
        if is_matrix and f.architecture in LLAMA_LIKE and info.type in _NOT_FOR_PRODUCTS:
            _fail(f, f"tensor {quote(name)} has type {info.type.name}, which cannot be multiplied with")
    return n_layer


def _layer_of(name: str) -> int | None:
    match = _LAYER_NAME.match(name)
    return int(match[1]) if match else None


def _check_experts(f: GGUFFile) -> None:
    n_expert = u32(f, "expert_count", 0, _MAX_EXPERTS, 0)
    used = _key(f, "expert_used_count")
    one_for_all = not isinstance(used, list) or f.architecture in LLAMA_LIKE
    most = u32(f, "expert_used_count", 0, _MAX_EXPERTS, 0) if one_for_all else max(used, default=0)
    if not isinstance(most, int) or (n_expert and not 1 <= most <= n_expert) or (not n_expert and most):
        _fail(f, f"{f.architecture}.expert_used_count is {most} of {n_expert} experts")
    groups = u32(f, "expert_group_count", 0, _MAX_EXPERTS, 0)
    chosen = u32(f, "expert_group_used_count", 0, _MAX_EXPERTS, 0)
    if groups and (groups >= n_expert or (groups > 1 and (n_expert % groups or not 0 < chosen < groups))):
        _fail(f, f"{n_expert} experts cannot be in {groups} groups of which {chosen} are used")


def _check_rope(f: GGUFFile) -> None:
    kind = _key(f, "rope.scaling.type")
    if kind is not None and kind not in _ROPE_SCALINGS:
        _fail(f, f"{f.architecture}.rope.scaling.type is {quote(kind)}, not one of {', '.join(_ROPE_SCALINGS)}")
    _positive(f, "rope.freq_base", 10000.0)


def _check_llama_like(f: GGUFFile, n_layer: int) -> None:
    n_embd = u32(f, "embedding_length", 1, _MAX_WIDTH)
    if _positive(f, "attention.layer_norm_rms_epsilon", None) >= 1:
        _fail(f, f"{f.architecture}.attention.layer_norm_rms_epsilon is not below 1")
    n_head, n_head_kv, head_dim = _check_heads(f, n_layer, n_embd)
    n_vocab, widths = _n_vocab(f), _feed_forward_widths(f, n_layer)
    u32(f, "vocab_size", 0, _MAX_VOCAB, n_vocab)
    _shaped(f, "token_embd.weight", (n_embd, n_vocab))
    _shaped(f, "output.weight", (n_embd, n_vocab), optional=True)
    _norm(f, "output_norm.weight", n_embd)
    for i in range(n_layer):
        _norm(f, f"blk.{i}.attn_norm.weight", n_embd)
        _check_attention(f, i, n_embd, n_head[i] * head_dim, n_head_kv[i] * head_dim)
        _check_head_norms(f, i, head_dim, n_head[i] * head_dim, n_head_kv[i] * head_dim)
        _norm(f, f"blk.{i}.ffn_norm.weight", n_embd)
        _check_feed_forward(f, i, n_embd, widths[i])
        _check_post_norms(f, i, n_embd)


def _check_heads(f: GGUFFile, n_layer: int, n_embd: int) -> tuple[list[int], list[int], int]:
    n_head = _per_layer(f, "attention.head_count", n_layer)
    n_head_kv = _per_layer(f, "attention.head_count_kv", n_layer, n_head[0])
    for i, (q, kv) in enumerate(zip(n_head, n_head_kv, strict=True)):
        if q < 1 or kv < 1 or q % kv:
            _fail(f, f"layer {i} has {q} query heads and {kv} key/value heads, which does not divide")
    if _key(f, "attention.key_length") is None and n_embd % n_head[0]:
        _fail(f, f"the embedding length {n_embd} does not divide into {n_head[0]} heads")
    head_dim = u32(f, "attention.key_length", 1, _MAX_WIDTH, n_embd // n_head[0])
    if u32(f, "attention.value_length", 1, _MAX_WIDTH, n_embd // n_head[0]) != head_dim:
        _fail(f, "keys and values have different lengths per head")
    n_rot = u32(f, "rope.dimension_count", 2, _MAX_WIDTH, head_dim)
    if n_rot > head_dim or n_rot % 2 or (f.architecture == "llama" and n_rot != head_dim):
        _fail(f, f"{f.architecture}.rope.dimension_count is {n_rot} for heads of {head_dim}")
    return n_head, n_head_kv, head_dim


def _check_whole_rotation(f: GGUFFile, n_layer: int) -> None:
    n_head = _per_layer(f, "attention.head_count", n_layer)
    usual = u32(f, "embedding_length", 1, _MAX_WIDTH) // max(1, n_head[0])
    head_dim = u32(f, "attention.key_length", 1, _MAX_WIDTH, usual)
    if u32(f, "rope.dimension_count", 2, _MAX_WIDTH, head_dim) != head_dim:
        n_rot = _key(f, "rope.dimension_count")
        _fail(f, f"{f.architecture}.rope.dimension_count is {n_rot} for heads of {head_dim}")


def _n_vocab(f: GGUFFile) -> int:
    tokens = f.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else u32(f, "vocab_size", 1, _MAX_VOCAB)


def _check_attention(f: GGUFFile, i: int, n_embd: int, n_q: int, n_kv: int) -> None:
    if f"blk.{i}.attn_qkv.weight" in f.tensors and f.architecture == "llama":
        _shaped(f, f"blk.{i}.attn_qkv.weight", (n_embd, n_q + 2 * n_kv))
    else:
        for name, width in (("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)):
            _shaped(f, f"blk.{i}.{name}.weight", (n_embd, width))
            _shaped(f, f"blk.{i}.{name}.bias", (width,), optional=True)
    _shaped(f, f"blk.{i}.attn_output.weight", (n_q, n_embd))
    _shaped(f, f"blk.{i}.attn_output.bias", (n_embd,), optional=True)


def _check_head_norms(f: GGUFFile, i: int, head_dim: int, n_q: int, n_kv: int) -> None:
    widths = {"head": (head_dim, head_dim), "full": (n_q, n_kv)}.get(_key(f, "attention.qk_norm") or "none")
    if f.architecture == "liquid" and widths:
        _norm(f, f"blk.{i}.attn_q_norm.weight", widths[0])
        _norm(f, f"blk.{i}.attn_k_norm.weight", widths[1])


def _check_post_norms(f: GGUFFile, i: int, n_embd: int) -> None:
    for name in (f"blk.{i}.post_attention_norm.weight", f"blk.{i}.post_ffw_norm.weight"):
        if f.architecture == "liquid" and name in f.tensors:
            _norm(f, name, n_embd)


def _feed_forward_widths(f: GGUFFile, n_layer: int) -> list[tuple[int, bool]]:
    """(hidden width, whether it is a mixture) of every layer."""
    n_expert = u32(f, "expert_count", 0, _MAX_EXPERTS, 0)
    mixtures = expert_layers(f, n_layer, n_expert) if f.architecture == "liquid" else [n_expert > 0] * n_layer
    expert_key = "expert_feed_forward_length" if f.architecture == "liquid" else "feed_forward_length"
    dense = [0] * n_layer if all(mixtures) else _per_layer(f, "feed_forward_length", n_layer)
    experts = [0] * n_layer
    if any(mixtures):
        experts = _per_layer(f, expert_key if _key(f, expert_key) is not None else "feed_forward_length", n_layer)
    return [(e if is_mixture else d, is_mixture) for d, e, is_mixture in zip(dense, experts, mixtures, strict=True)]


def _check_feed_forward(f: GGUFFile, i: int, n_embd: int, width: tuple[int, bool]) -> None:
    n_ff, is_mixture = width
    n_expert, n_shared = u32(f, "expert_count", 0, _MAX_EXPERTS, 0), 0
    if is_mixture:
        _shaped(f, f"blk.{i}.ffn_gate_inp.weight", (n_embd, n_expert))
        n_shared = u32(f, "expert_shared_feed_forward_length", 0, _MAX_WIDTH, 0)
    for end, hidden, tail in (("_exps", n_ff, (n_expert,)) if is_mixture else ("", n_ff, ()), ("_shexp", n_shared, ())):
        if hidden:
            for name in ("ffn_gate", "ffn_up"):
                _shaped(f, f"blk.{i}.{name}{end}.weight", (n_embd, hidden, *tail))
            _shaped(f, f"blk.{i}.ffn_down{end}.weight", (hidden, n_embd, *tail))


def _tensor(f: GGUFFile, name: str) -> Any:
    if name not in f.tensors:
        _fail(f, f"the tensor {quote(name)} is missing")
    return f.tensors[name]


def _shaped(f: GGUFFile, name: str, shape: tuple[int, ...], optional: bool = False) -> None:
    if optional and name not in f.tensors:
        return
    found = _tensor(f, name).shape
    if found != shape:
        _fail(f, f"tensor {quote(name)} has the shape {list(found)}, {list(shape)} was expected")


def _norm(f: GGUFFile, name: str, width: int) -> None:
    _shaped(f, name, (width,))
    if f.tensors[name].type is not GGMLQuantizationType.F32:
        _fail(f, f"tensor {quote(name)} has type {f.tensors[name].type.name}, norms must be F32")
