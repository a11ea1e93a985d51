"""The quantization types on offer: one table of tensor types, one of file types. Sizes are computed, never typed.

Knows names, numbers and block sizes, as far as the gguf package has them. Which tensor of a model gets which type is
in `recipes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as T

from liquidcli.errors import UsageError

_NAMES = """F32 F16 BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS MXFP4 NVFP4 Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S
IQ2_XS IQ2_XXS TQ2_0 TQ1_0 IQ1_M IQ1_S Q2_0 Q1_0"""
TENSOR_TYPES = {name: T[name] for name in _NAMES.split() if name in T.__members__}
_FLOATS = (T.F32, T.F16, T.BF16)
# types that ggml itself cannot make without an importance matrix
BLIND = (T.IQ2_XXS, T.IQ2_XS, T.IQ1_S)
# types that become garbage without one, so that llama-quantize refuses; embeddings and output are exempt
NEEDS_IMATRIX = (*BLIND, T.IQ3_XXS, T.IQ2_S, T.IQ1_M)
# types whose search in a table ends the process where its sums, and their squares, leave float32
FROM_CODEBOOK = (*NEEDS_IMATRIX, T.IQ3_S)


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


_ROWS = (
    ("IQ1_S", 24, "IQ1_S", "the least bits of all, with loss that shows; needs an imatrix"),
    ("IQ1_M", 31, "IQ1_M", "a little above IQ1_S; needs an imatrix"),
    ("TQ1_0", 36, "TQ1_0", "for models trained to ternary weights, packed tightest"),
    ("TQ2_0", 37, "TQ2_0", "for models trained to ternary weights, faster than TQ1_0"),
    ("Q1_0", 40, "Q1_0", "for models trained to one bit"),
    ("Q2_0", 41, "Q2_0", "for models trained to two bits"),
    ("IQ2_XXS", 19, "IQ2_XXS", "2 bits for large models that fit no other way; needs an imatrix"),
    ("IQ2_XS", 20, "IQ2_XS", "a little above IQ2_XXS; needs an imatrix"),
    ("IQ2_S", 28, "IQ2_XS", "a little above IQ2_XS; needs an imatrix"),
    ("IQ2_M", 29, "IQ2_S", "the best of 2 bits; needs an imatrix"),
    ("Q2_K", 10, "Q2_K", "2 bits in super-blocks, 3 where it hurts most: for large models"),
    ("Q2_K_S", 21, "Q2_K", "Q2_K with fewer exceptions; needs an imatrix"),
    ("IQ3_XXS", 23, "IQ3_XXS", "3 bits from a codebook, smallest; needs an imatrix"),
    ("IQ3_XS", 22, "IQ3_S", "3 bits from a codebook; needs an imatrix"),
    ("IQ3_S", 26, "IQ3_S", "3 bits from a codebook: better than Q3_K of the same size"),
    ("IQ3_M", 27, "IQ3_S", "IQ3_S with 4 bits where it hurts most"),
    ("Q3_K_S", 11, "Q3_K", "3 bits in super-blocks, few exceptions"),
    ("Q3_K_M", 12, "Q3_K", "3 bits with 4 and 5 where it hurts most"),
    ("Q3_K_L", 13, "Q3_K", "3 bits with 5 where it hurts most"),
    ("IQ4_XS", 30, "IQ4_XS", "a codebook of 4 bits: smaller than Q4_K at little loss"),
    ("IQ4_NL", 25, "IQ4_NL", "a codebook of 4 bits for rows that IQ4_XS does not fit"),
    ("MXFP4_MOE", 38, "MXFP4", "experts in 4-bit floats, the rest in Q8_0: for models trained that way"),
    ("Q4_0", 2, "Q4_0", "the smallest of 4 bits and, on most CPUs, the fastest"),
    ("Q4_1", 3, "Q4_1", "Q4_0 with an offset per block: a little larger, a little closer"),
    ("Q4_K_S", 14, "Q4_K", "4 bits in super-blocks, few exceptions"),
    ("Q4_K_M", 15, "Q4_K", "4 bits with 6 where it hurts most: the usual choice"),
    ("Q5_0", 8, "Q5_0", "5 bits in plain blocks: for rows that K types do not fit"),
    ("Q5_K_S", 16, "Q5_K", "5 bits in super-blocks"),
    ("Q5_K_M", 17, "Q5_K", "5 bits with 6 where it hurts most"),
    ("Q5_1", 9, "Q5_1", "Q5_0 with an offset per block"),
    ("Q6_K", 18, "Q6_K", "close to the original"),
    ("Q8_0", 7, "Q8_0", "next to no loss"),
    ("F16", 1, "F16", "half precision: a source to quantize from"),
    ("BF16", 32, "BF16", "half precision with the range of F32, as most checkpoints come"),
    ("F32", 0, "F32", "full precision: only as a source or a reference"),
)
FILE_TYPES = {
    name: FileType(name, number, TENSOR_TYPES[default], use)
    for name, number, default, use in _ROWS
    if default in TENSOR_TYPES
}
# For splitting, merging and other keys: every tensor as it is, the input's own number kept.
COPY = FileType("COPY", 0, T.F32, "every tensor as it is")
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
# For models of few bits by training; any other model would become noise, so `--fit` never chooses them.
TRAINED_FOR = ("TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4_MOE")
# What `--all` lists; nobody wants F32 for being the largest that fits.
OFFERED = tuple(name for name in FILE_TYPES if name != "F32")


def is_quantized(kind: T) -> bool:
    return kind not in _FLOATS and GGML_QUANT_SIZES[kind][0] > 1


def needs_imatrix(file_type: str, name: str, kind: T) -> bool:
    """Whether tensor `name` of this type must have its own importance."""
    if name in ("token_embd.weight", "per_layer_token_embd.weight", "output.weight"):
        return kind in BLIND
    return kind in NEEDS_IMATRIX or (kind is T.Q2_K and file_type == "Q2_K_S")


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
    if name == COPY.name:
        return COPY
    by_number = {str(row.number): row for row in FILE_TYPES.values()}
    return FILE_TYPES.get(ALIASES.get(name, name)) or by_number.get(name)


def file_type(text: str) -> FileType:
    found = find_file_type(text)
    if found is None:
        raise UsageError(f"{text!r} is no quantization type", hint=f"one of {', '.join(FILE_TYPES)}, COPY")
    return found


def tensor_type(text: str) -> T:
    """A tensor type by name, in any case."""
    found = TENSOR_TYPES.get(text.strip().upper())
    if found is None:
        raise UsageError(f"{text!r} is no tensor type", hint=f"one of {', '.join(TENSOR_TYPES)}")
    return found
