"""Tiny bases and gate packs for them. Knows the pack format's writer; the base comes from tests.gguf_bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liquidcli.gates.identity import base_identity
from liquidcli.gates.pack import Depth, Pack, write_pack
from liquidcli.gguf_file import open_gguf
from tests.gguf_bytes import llama


def write_base(path: Path, n_layer: int = 4, **sizes: int) -> Path:
    return llama(n_layer, **sizes).write(path)


def tiny_pack(base: Path, spans: tuple[int, ...] = (0, 1, 1, 0), m: int = 32, **depth: object) -> Pack:
    """Linear gates with bias, adapters of m units (0: none), random."""
    rng = np.random.default_rng(3)
    with open_gguf(base) as f:
        identity = base_identity(f)
    n = identity.embedding_length
    keys = {"calibration_threshold": (0.25, 0.5, 0.75), "calibration_executed_fraction": (1.0, 0.875, 0.75), **depth}
    found = Depth(gate_span=spans, **keys)
    tensors = {}
    for gate in () if found.layout.fault() else found.layout.gates():
        prefix = f"blk.{gate.layer}."
        tensors[f"{prefix}{gate.stem}.weight"] = rng.standard_normal(n).astype(np.float32)
        tensors[f"{prefix}{gate.stem}.bias"] = rng.standard_normal(1).astype(np.float32)
        if m and gate.may_adapt:
            tensors[f"{prefix}depth_skip_gate.weight"] = rng.standard_normal((m, n)).astype(np.float32)
            tensors[f"{prefix}depth_skip_up.weight"] = rng.standard_normal((m, n)).astype(np.float32)
            tensors[f"{prefix}depth_skip_down.weight"] = rng.standard_normal((n, m)).astype(np.float32)
    return Pack(identity, found, tensors, "tiny gates")


def write_tiny_pack(path: Path, base: Path, **more: object) -> Path:
    write_pack(path, tiny_pack(base, **more))
    return path
