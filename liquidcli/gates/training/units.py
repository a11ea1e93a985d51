"""The units in which a base is trained, so that one learning rate fits families whose norms differ a hundredfold.

Norms that make large inputs are divided by a power of two and the matrices behind them multiplied by it; a scaled
embedding and the norms behind the halves are divided by another, and the whole state with them. Nothing that the base
computes changes, not by a bit. Knows how gates, adapters and updates come from the file's units and return. Trains
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...gguf_file import GGUFFile

MOST_RMS = 0.5  # of a norm; the learning rates were chosen where norms have 0.2 to 0.4
READERS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps"),
}
_NORM_BEFORE = {reader: norm for norm, readers in READERS.items() for reader in readers} | {
    "depth_gate": "attn_norm", "depth_gate_attn": "attn_norm", "depth_gate_ffn": "ffn_norm",
    "depth_skip_gate": "ffn_norm", "depth_skip_up": "ffn_norm",
}  # fmt: skip
POST_NORMS = ("post_attention_norm", "post_ffw_norm")


@dataclass(frozen=True)
class Units:
    """What the file's numbers are divided by; powers of two."""

    norms: Mapping[tuple[int, str], float]  # by layer and norm
    state: float = 1.0

    @classmethod
    def of(cls, f: GGUFFile, embedding_scale: float) -> Units:
        """Small enough for every norm; the state's where nothing but norms and the embedding would have to change."""
        layers = range(f.block_count)
        norms = {(il, name): _unit(f.array(f"blk.{il}.{name}.weight")) for il in layers for name in READERS}
        post = all(f"blk.{il}.{name}.weight" in f.tensors for il in layers for name in POST_NORMS)
        return cls(norms, 2.0 ** round(math.log2(embedding_scale)) if post and embedding_scale > 0 else 1.0)

    def base(self, name: str, layer: int) -> float:
        """What a tensor of the base (`attn_q`) is multiplied by."""
        if name in READERS:
            return 1 / self.norms[layer, name]
        if name in POST_NORMS:
            return 1 / self.state
        return self.norms[layer, _NORM_BEFORE[name]] if name in _NORM_BEFORE else 1.0

    def trained(self, name: str) -> float:
        """What a tensor of a pack (`blk.3.depth_gate.weight`, `blk.3.attn_q.weight.lora_a`) is multiplied by when it is
        read, and divided by when it is written."""
        _, layer, part, *kind = name.split(".")
        if kind in (["bias"], ["weight", "lora_b"]):
            return 1.0
        return 1 / self.state if part == "depth_skip_down" else self.base(part, int(layer))


def _unit(norm: np.ndarray) -> float:
    rms = float(np.sqrt(np.mean(np.square(norm, dtype=np.float64))))
    return 2.0 ** max(0, math.ceil(math.log2(rms / MOST_RMS))) if rms > 0 else 1.0
