"""FP8 checkpoints: E4M3 weights with a scale a block, read as the float32 numbers that they stand for.

Knows `quantization_config` of the method fp8 and the tensors `*.weight_scale_inv`. Other methods stay refused.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np

from liquidcli.errors import IntegrityError

from .checkpoint import Checkpoint, SourceTensor
from .config import Config
from .encode import to_float32

STORED, SCALE = "F8_E4M3", "_scale_inv"


@dataclass(frozen=True)
class BlockScaled(SourceTensor):
    """Says F32 of itself, with the size that it has as such; its bytes lie in the file one an item."""

    scale: SourceTensor | None = None
    block: tuple[int, int] = (1, 1)

    def read(self, first: int = 0, count: int | None = None) -> np.ndarray:
        assert self.scale is not None
        n_columns, (high, wide) = self.shape[1], self.block
        count = self.shape[0] - first if count is None else count
        items = np.fromfile(self.path, np.uint8, count * n_columns, offset=self.offset + first * n_columns)
        if items.size != count * n_columns:
            raise IntegrityError(f"{self.path} changed while it was read: {self.name} is cut short")
        top, bottom = first // high, ceil((first + count) / high)
        scale = to_float32(self.scale.read(top, bottom - top), self.scale.dtype)  # [blocks down, blocks across]
        rows = np.repeat(scale, high, axis=0)[first - top * high :][:count]
        return _e4m3()[items].reshape(count, n_columns) * np.repeat(rows, wide, axis=1)[:, :n_columns]


@functools.cache
def _e4m3() -> np.ndarray:
    """Every E4M3 number: no infinity, one NaN a sign."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    magnitude[(bits & 0x7F) == 0x7F] = np.nan
    return np.where(bits & 0x80, -magnitude, magnitude).astype(np.float32)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint with float32 weights, if its method is fp8 with blocks; else as it is."""
    section = Config(checkpoint.config).section("quantization_config")
    if section is None or section.raw("quant_method") != "fp8":
        return checkpoint
    high, wide = section.items("weight_block_size", int, 2)
    if not high or not wide:
        raise IntegrityError(f"{section.where}: weight_block_size is [{high}, {wide}]")
    tensors = dict(checkpoint.tensors)
    for name in [name for name in tensors if name.endswith(f".weight{SCALE}")]:
        weight, scale = tensors.get(name.removesuffix(SCALE)), tensors.pop(name)
        if weight is None or weight.dtype != STORED or len(weight.shape) != 2:
            raise IntegrityError(f"{name} is there, but not the {STORED} matrix that it scales")
        blocks = (ceil(weight.shape[0] / high), ceil(weight.shape[1] / wide))
        if scale.shape != blocks or scale.dtype not in ("F32", "BF16"):
            raise IntegrityError(f"{name} is {scale.dtype} {list(scale.shape)}, F32 {list(blocks)} was expected")
        tensors[weight.name] = BlockScaled(
            weight.name, "F32", weight.shape, weight.path, weight.offset, 4 * prod(weight.shape), scale, (high, wide)
        )
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    return replace(checkpoint, config=config, tensors=tensors)
