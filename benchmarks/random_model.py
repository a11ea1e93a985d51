"""Writes GGUF models of random weights: valid quantized blocks made directly, so gigabytes take seconds, not hours.

Knows the block layouts it can fill and the metadata of the `llama` and `liquid` architectures. Weights depend on the
seed and the tensor's name alone: a `llama` and a `liquid` file of one seed share every weight. Their text is noise.
ref: block layouts, https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from shapes import Gates, Shape, Tensor, Type, tensors

from liquidcli.files import atomic_output
from liquidcli.gguf_file import open_gguf

Progress = Callable[[int, int, str], None]

# std of the integer grid of each type, for a scale of 1: the scale that gives the wanted std is std / this
_BLOCK = {
    Type.Q4_0: ([("d", "<f2"), ("q", "u1", 16)], 4.61),
    Type.Q4_1: ([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)], 4.61),
    Type.Q5_0: ([("d", "<f2"), ("h", "u1", 4), ("q", "u1", 16)], 9.23),
    Type.Q5_1: ([("d", "<f2"), ("m", "<f2"), ("h", "u1", 4), ("q", "u1", 16)], 9.23),
    Type.Q8_0: ([("d", "<f2"), ("q", "i1", 32)], 73.9),
    Type.Q4_K: ([("d", "<f2"), ("m", "<f2"), ("s", "u1", 12), ("q", "u1", 128)], 233.0),
    Type.Q5_K: ([("d", "<f2"), ("m", "<f2"), ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)], 473.0),
    Type.Q6_K: ([("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), ("d", "<f2")], 1365.0),
}
_MIDDLE = {Type.Q4_1: -7.5, Type.Q5_1: -15.5, Type.Q4_K: 7.5, Type.Q5_K: 15.5}  # m / d that centres the grid on zero
_PLAIN = {Type.F32: "<f4", Type.F16: "<f2"}
BODY_TYPES = (*_BLOCK, Type.F16, Type.F32, Type.BF16)


def random_data(tensor: Tensor, seed: int) -> np.ndarray:  # [size_bytes] uint8
    """The stored bytes of one tensor: finite values of the wanted std around zero."""
    rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    if tensor.fill is not None:
        return np.full(tensor.shape, tensor.fill, "<f4").reshape(-1).view(np.uint8)
    if tensor.type in _BLOCK:
        return _random_blocks(tensor, rng)
    values = rng.standard_normal(int(np.prod(tensor.shape)), np.float32) * np.float32(tensor.std)
    if tensor.type is Type.BF16:
        return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return values.astype(_PLAIN[tensor.type]).view(np.uint8)


def _random_blocks(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    fields, grid_std = _BLOCK[tensor.type]
    words = rng.integers(0, 1 << 64, -(-tensor.size_bytes // 8), np.uint64)
    blocks = words.view(np.uint8)[: tensor.size_bytes].view(np.dtype(fields))
    sign = np.where(blocks["q"][:, 0] & 1, -1.0, 1.0)  # half the scales negative: what is left of a mean cancels
    scale = sign * (tensor.std / grid_std)
    blocks["d"] = scale
    if tensor.type in _MIDDLE:
        blocks["m"] = scale * _MIDDLE[tensor.type]
    return blocks.view(np.uint8)


def write_model(
    path: Path, shape: Shape, *, body: Type = Type.Q4_0, head: Type = Type.Q6_K, gates: Gates | None = None,
    seed: int = 1, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write a `liquid` model with `gates`, or without them its `llama` twin; gate biases are 0 until `set_biases`."""
    table = tensors(shape, body, head, gates)
    total = sum(tensor.size_bytes for tensor in table)
    with atomic_output(path, total) as part:
        writer = gguf.GGUFWriter(str(part), "liquid" if gates else "llama")
        _metadata(writer, shape, gates)
        for t in table:
            writer.add_tensor_info(t.name, t.shape[::-1], np.dtype(np.float32), t.size_bytes, raw_dtype=t.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done = 0
        for t in table:
            writer.write_tensor_data(random_data(t, seed))
            done += t.size_bytes
            if progress:
                progress(done, total, t.name)
        writer.close()
    return path


def set_biases(path: Path, bias_by_layer: dict[int, float]) -> None:
    """Overwrite gate biases in the file: a large positive one runs its layer for every token, a negative one none."""
    with open_gguf(path) as f:
        offsets = {layer: f.tensors[f"blk.{layer}.depth_gate.bias"].offset for layer in bias_by_layer}
    with path.open("r+b") as file:
        for layer, bias in bias_by_layer.items():
            file.seek(offsets[layer])
            file.write(np.float32(bias).tobytes())


def _metadata(writer: gguf.GGUFWriter, shape: Shape, gates: Gates | None) -> None:
    writer.add_name(f"random {shape.name}")
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.n_vocab)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
    if gates:
        _liquid_metadata(writer, shape, gates)
    _tokenizer(writer, shape.n_vocab)


def _liquid_metadata(writer: gguf.GGUFWriter, shape: Shape, gates: Gates) -> None:
    writer.add_string("liquid.rope.type", "norm")
    writer.add_string("liquid.attention.qk_norm", "none")
    writer.add_string("liquid.attention.window_type", "none")
    if shape.n_expert:
        writer.add_array("liquid.moe_layers", [True] * shape.n_layer)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
        writer.add_expert_weights_norm(True)
        writer.add_bool("liquid.expert_weight_before_ffn", False)
        writer.add_expert_feed_forward_length(shape.n_ff)
    writer.add_uint32("liquid.depth.version", 1)
    writer.add_string("liquid.depth.gate_kind", gates.kind)
    writer.add_array("liquid.depth.gate_span", [int(layer in gates.layers) for layer in range(shape.n_layer)])
    writer.add_float32("liquid.depth.threshold", 0.5)
    writer.add_string("liquid.depth.kv_policy", gates.kv_policy)
    writer.add_bool("liquid.depth.ffn_scaled_by_gate", gates.scaled)
    writer.add_bool("liquid.depth.adapter_scaled_by_gate", gates.scaled)


def _tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """A vocabulary of 3 special, 256 byte and otherwise numbered tokens: every text can be tokenized, byte by byte."""
    tokens, types = zip(*_vocabulary(n_vocab), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)


def _vocabulary(n_vocab: int) -> Iterator[tuple[str, gguf.TokenType]]:
    yield from (("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL))
    yield from ((f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256))
    yield from ((f"w{i} ", gguf.TokenType.NORMAL) for i in range(n_vocab - 259))
