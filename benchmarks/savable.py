"""How many bytes of weights a token reads, at every layer and with layers skipped, from a GGUF's own tensor table.

Knows which tensors a skipped layer still reads (its norm, gate and adapter; under kv_policy = project K and V) and
that of a mixture of experts only the used ones are read. Activations and the K,V cache are not counted: contexts are
short here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from liquidcli.gguf_file import GGUFFile, TensorInfo

_BLOCK = re.compile(r"^blk\.(\d+)\.(.+?)\.(?:weight|bias)$")
_ALWAYS = ("attn_norm", "attn_k", "attn_v", "attn_k_norm")
_PARTS = ("always", "run", "norm", "gate", "adapter")


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer by when they are read; `norm` is the ffn_norm, which an adapter reads as well."""

    always: int = 0  # by every token: attn_norm, K, V
    run: int = 0  # only if the layer runs
    norm: int = 0
    gate: int = 0  # by every token unless all gates are off
    adapter: int = 0  # only if the layer is skipped

    @property
    def full(self) -> int:
        return self.always + self.run + self.norm

    def at(self, run_rate: float) -> float:
        """Mean bytes read per token when the layer runs for `run_rate` of the tokens and its gate is evaluated."""
        skipped = self.adapter + (self.norm if self.adapter else 0)
        return self.always + self.gate + run_rate * (self.run + self.norm) + (1 - run_rate) * skipped


@dataclass(frozen=True)
class TokenBytes:
    """Bytes that one token reads: `shared` (head, last norm, one embedding row) and its layers."""

    shared: int
    layers: tuple[LayerBytes, ...]

    @property
    def full(self) -> int:
        """No gate, no adapter, every layer."""
        return self.shared + sum(layer.full for layer in self.layers)

    def at(self, run_rate: dict[int, float]) -> float:
        """Mean bytes with gated layer i running for the share run_rate[i] of tokens; layers not named have no gate."""
        return self.shared + sum(
            layer.at(run_rate[i]) if i in run_rate else layer.full for i, layer in enumerate(self.layers)
        )

    def savable(self, run_rate: dict[int, float]) -> float:
        return 1 - self.at(run_rate) / self.full


def token_bytes(f: GGUFFile) -> TokenBytes:
    """Sort every tensor of the file into what a token reads of it."""
    arch = f.architecture
    used_share = f.metadata.get(f"{arch}.expert_used_count", 0) / max(1, f.metadata.get(f"{arch}.expert_count", 0))
    drops = f.metadata.get(f"{arch}.depth.kv_policy") == "drop"
    shared = 0
    layers: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_PARTS, 0))
    for info in f.tensors.values():
        match = _BLOCK.match(info.name)
        if match:
            share = used_share if match[2].endswith("_exps") else 1
            layers[int(match[1])][_part(match[2], drops)] += round(info.size_bytes * share)
        else:
            shared += _shared_bytes(info, tied="output.weight" not in f.tensors)
    return TokenBytes(shared, tuple(LayerBytes(**layers[i]) for i in range(f.block_count)))


def _part(name: str, drops: bool) -> str:
    if name in _ALWAYS:
        return "run" if drops and name != "attn_norm" else "always"
    if name == "ffn_norm":
        return "norm"
    return {"depth_gate": "gate", "depth_skip": "adapter"}.get("_".join(name.split("_")[:2]), "run")


def _shared_bytes(info: TensorInfo, *, tied: bool) -> int:
    if info.name == "token_embd.weight" and not tied:
        return info.size_bytes // info.shape[-1]
    return info.size_bytes
