"""Tiny Llama-shaped checkpoint folders, written with numpy alone: config.json, safetensors, tokenizer files.

Knows transformers' names and the safetensors format. Uses neither torch nor the converter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8"}
MERGES = ("h e", "l l", "he ll", "hell o", "\u0120 w", "\u0120w o")


def llama_tensors(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights under transformers' names."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or d // config["num_attention_heads"]
    q = config["num_attention_heads"] * head
    k = config.get("num_key_value_heads", config["num_attention_heads"]) * head
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for i in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
            "self_attn.q_proj": (q, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d),
            "self_attn.o_proj": (d, q), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 cut to BF16; the tests' random numbers need no rounding rule."""
    return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2")


def safetensors_bytes(tensors: Mapping[str, np.ndarray], dtype: str = "F32", **header_changes: Any) -> bytes:
    """A safetensors file; `header_changes` replaces entries of its header by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, values in tensors.items():
        raw = (to_bf16(values) if dtype == "BF16" else np.asarray(values).astype(DTYPES[dtype])).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({**header, **header_changes}).encode()
    return len(text).to_bytes(8, "little") + text + data


def byte_alphabet() -> list[str]:
    """GPT-2's printable letter for each byte, in its order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [letters[byte] for byte in [*printable, *rest]]


def byte_level_tokenizer(merges: tuple[str, ...] = MERGES, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of GPT-2's kind; `changes` replaces top-level entries."""
    words = ["<s>", "</s>", *byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": list(merges)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], **special} for i in (0, 1)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {**model, "dropout": None, "unk_token": None, "byte_fallback": False, "ignore_merges": False},
        **changes,
    }


def split_step(regex: str) -> dict[str, Any]:
    """A Split with a regex and then bytes, as Llama 3, Tekken and their kin have it."""
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def sentencepiece_tokenizer(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json as transformers makes it from Llama 2's tokenizer.model: byte fallback, every split a merge."""
    letters = ["\u2581", *"helowrd"]
    made = ["he", "ll", "hell", "hello", "\u2581w", "\u2581wo", "\u2581hello"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *made]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [
        [word[:cut], word[cut:]]
        for word in made
        for cut in range(1, len(word))
        if word[:cut] in vocab and word[cut:] in vocab
    ]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    steps = [{"type": "Prepend", "prepend": "\u2581"}]
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": words[i], **special} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": vocab, "merges": merges,
        },
        **changes,
    }  # fmt: skip


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(kind: int = 2, defined: tuple[str, ...] = ()) -> bytes:
    """A tokenizer.model with the words of `sentencepiece_tokenizer` and user-defined ones; kind 2 is BPE, 1 unigram."""
    words = [*sentencepiece_tokenizer()["model"]["vocab"], *defined]
    types = {"<unk>": 2, "<s>": 3, "</s>": 3, **dict.fromkeys(defined, 4)}
    data = b""
    for number, word in enumerate(words):
        score = np.float32(-max(number - 259, 0)).tobytes()
        piece = _field(1, word.encode()) + _varint(2 << 3 | 5) + score
        data += _field(1, piece + _field(3, types.get(word, 6 if word.startswith("<0x") else 1)))
    trainer = _field(3, kind) + _field(35, 1)
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0)
    return data + _field(2, trainer) + _field(3, normalizer)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_llama(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    dtype: str = "F32",
    n_shards: int = 1,
    tokenizer: Mapping[str, Any] | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
) -> Path:
    """A whole folder; `config` changes CONFIG, a value of None removes the key."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **(config or {})}.items() if value is not None}
    tensors = llama_tensors(config) if tensors is None else tensors
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer or byte_level_tokenizer())
    write_json(folder / "tokenizer_config.json", tokenizer_config or {"bos_token": "<s>", "eos_token": "</s>"})
    names = list(tensors)
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, dtype))
        return folder
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        mine = {name: tensors[name] for name in names[shard::n_shards]}
        (folder / file).write_bytes(safetensors_bytes(mine, dtype))
        weight_map |= dict.fromkeys(mine, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder
