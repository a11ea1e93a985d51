"""The quantization types on offer: one table of tensor types, one of file types. Sizes are computed, never typed.

Knows names, numbers and block sizes. Which tensor of a model gets which type is in `recipes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from liquidcli.errors import UsageError

TENSOR_TYPES = {
    t.name: t for t in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q6_K, T.Q5_K, T.Q5_1, T.Q5_0, T.Q4_K, T.Q4_1, T.Q4_0)
}  # fmt: skip
_FLOATS = (T.F32, T.F16, T.BF16)


@dataclass(frozen=True)
class FileType:
    """What a person asks for: a default tensor type and the exceptions that go with its name."""

    name: str
    number: int  # general.file_type, llama.cpp's own numbering
    default: T
    use: str

    @property
    def bits_per_weight(self) -> float:
        """Of a tensor of the default type; a file's own figure is in its plan."""
        return bits_per_weight(self.default)


FILE_TYPES = {
    row.name: row
    for row in (
        FileType("Q4_0", 2, T.Q4_0, "the smallest and, on most CPUs, the fastest"),
        FileType("Q4_1", 3, T.Q4_1, "Q4_0 with an offset per block: a little larger, a little closer"),
        FileType("Q4_K_S", 14, T.Q4_K, "4 bits in super-blocks, few exceptions"),
        FileType("Q4_K_M", 15, T.Q4_K, "4 bits with 6 where it hurts most: the usual choice"),
        FileType("Q5_0", 8, T.Q5_0, "5 bits in plain blocks: for rows that K types do not fit"),
        FileType("Q5_K_S", 16, T.Q5_K, "5 bits in super-blocks"),
        FileType("Q5_K_M", 17, T.Q5_K, "5 bits with 6 where it hurts most"),
        FileType("Q5_1", 9, T.Q5_1, "Q5_0 with an offset per block"),
        FileType("Q6_K", 18, T.Q6_K, "close to the original"),
        FileType("Q8_0", 7, T.Q8_0, "next to no loss"),
        FileType("F16", 1, T.F16, "half precision: a source to quantize from"),
        FileType("BF16", 32, T.BF16, "half precision with the range of F32, as most checkpoints come"),
        FileType("F32", 0, T.F32, "full precision: only as a source or a reference"),
    )
}
ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# What `--all` lists and `--fit` chooses from; nobody wants F32 for being the largest that fits.
OFFERED = tuple(name for name in FILE_TYPES if name != "F32")


def is_quantized(kind: T) -> bool:
    return kind not in _FLOATS and GGML_QUANT_SIZES[kind][0] > 1


def bits_per_weight(kind: T) -> float:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return block_bytes * 8 / block


def block_elements(kind: T) -> int:
    return GGML_QUANT_SIZES[kind][0]


def tensor_bytes(kind: T, n_elements: int) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return n_elements // block * block_bytes


def find_file_type(text: str) -> FileType | None:
    """By name, in any case, or by number; None when it is neither."""
    name = text.strip().upper()
    by_number = {str(row.number): row for row in FILE_TYPES.values()}
    return FILE_TYPES.get(ALIASES.get(name, name)) or by_number.get(name)


def file_type(text: str) -> FileType:
    found = find_file_type(text)
    if found is None:
        raise UsageError(f"{text!r} is no quantization type", hint=f"one of {', '.join(FILE_TYPES)}")
    return found


def tensor_type(text: str) -> T:
    """A tensor type by name, in any case."""
    found = TENSOR_TYPES.get(text.strip().upper())
    if found is None:
        raise UsageError(f"{text!r} is no tensor type", hint=f"one of {', '.join(TENSOR_TYPES)}")
    return found
