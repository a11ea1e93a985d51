"""Which tensor gets which type, for known shapes: a changed rule is a changed table under tests/golden/recipes.

`LIQUID_GOLDEN=rewrite make golden` writes the tables anew; read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from liquidcli.gguf_file import GGUFFile, TensorInfo
from liquidcli.gguf_parse import Shard
from liquidcli.quant import FILE_TYPES, OFFERED, Options, plan_file, schema

TABLES = Path(__file__).parent / "recipes"


def attention(d: int, kv: int) -> dict[str, tuple[int, ...]]:
    return {"attn_q": (d, d), "attn_k": (d, kv), "attn_v": (d, kv), "attn_output": (d, d)}


def fused(d: int, kv: int) -> dict[str, tuple[int, ...]]:
    return {"attn_qkv": (d, d + 2 * kv), "attn_output": (d, d)}


def dense(d: int, n_ff: int) -> dict[str, tuple[int, ...]]:
    return {"ffn_gate": (d, n_ff), "ffn_up": (d, n_ff), "ffn_down": (n_ff, d)}


def experts(d: int, n_ff: int, n: int) -> dict[str, tuple[int, ...]]:
    stacks = {"ffn_gate_exps": (d, n_ff, n), "ffn_up_exps": (d, n_ff, n), "ffn_down_exps": (n_ff, d, n)}
    return {"ffn_gate_inp": (d, n), **stacks}


def shared(d: int, n_ff: int) -> dict[str, tuple[int, ...]]:
    return {"ffn_gate_shexp": (d, n_ff), "ffn_up_shexp": (d, n_ff), "ffn_down_shexp": (n_ff, d)}


def adapter(d: int, m: int) -> dict[str, tuple[int, ...]]:
    return {"depth_skip_gate": (d, m), "depth_skip_up": (d, m), "depth_skip_down": (m, d)}


def linear_gate(d: int) -> dict[str, tuple[int, ...]]:
    return {"depth_gate": (d,)}


def bottleneck_gate(d: int, r: int) -> dict[str, tuple[int, ...]]:
    return {"depth_gate": (r,), "depth_gate_enc": (d, r), "depth_gate_norm": (r,)}


def header(
    arch, n_layer, d, n_vocab, layer, *, gated=None, gates_from=0, tied=False, n_expert=0, heads=(8, 8)
) -> GGUFFile:
    """A model of F16 matrices that exists only as its description; layers from `gates_from` on also have `gated`."""
    sizes = {"block_count": n_layer, "expert_count": n_expert}
    sizes |= {"attention.head_count": heads[0], "attention.head_count_kv": heads[1]}
    metadata = {"general.architecture": arch, **{f"{arch}.{name}": size for name, size in sizes.items()}}
    shapes = {"token_embd.weight": (d, n_vocab), "output_norm.weight": (d,)}
    shapes |= {} if tied else {"output.weight": (d, n_vocab)}
    for i in range(n_layer):
        own = {**layer, "attn_norm": (d,), "ffn_norm": (d,), **(gated if gated and i >= gates_from else {})}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in own.items()}
    tensors = {n: TensorInfo(n, s, T.F16 if len(s) > 1 else T.F32, 0, 0) for n, s in shapes.items()}
    spans = dict.fromkeys(metadata, (0, 0))
    return GGUFFile([Shard(Path(f"{arch}.gguf"), np.zeros(1, np.uint8), 3, 32, 0, metadata, {}, spans, tensors)])


LLAMA_1B = {**attention(2048, 512), **dense(2048, 8192)}
LLAMA_8B = {**attention(4096, 1024), **dense(4096, 14336)}
MIXTRAL = {**attention(4096, 1024), **experts(4096, 14336, 8)}
SMOLLM2 = {**attention(576, 192), **dense(576, 1536)}
FALCON = {**fused(4544, 64), "ffn_up": (4544, 18176), "ffn_down": (18176, 4544)}
LIQUID_MOE = {**attention(2048, 512), **experts(2048, 768, 16), **shared(2048, 1024)}
MODELS = {
    "smollm2-135m": header("llama", 30, 576, 49152, SMOLLM2, tied=True, heads=(9, 3)),
    "llama-3.2-1b": header("llama", 16, 2048, 128256, LLAMA_1B, tied=True, heads=(32, 8)),
    "llama-3-8b": header("llama", 32, 4096, 128256, LLAMA_8B, heads=(32, 8)),
    "llama-3-70b": header("llama", 80, 8192, 128256, {**attention(8192, 1024), **dense(8192, 28672)}, heads=(64, 8)),
    "mixtral-8x7b": header("llama", 32, 4096, 32000, MIXTRAL, n_expert=8, heads=(32, 8)),
    "falcon-7b": header("falcon", 32, 4544, 65024, FALCON, heads=(71, 1)),
    "liquid-flexidepth-8b": header(
        "liquid", 32, 4096, 128256, LLAMA_8B, gates_from=16, gated={**bottleneck_gate(4096, 256), **adapter(4096, 896)}
    ),
    "liquid-linear-576": header(
        "liquid", 30, 576, 49152, SMOLLM2, tied=True, gates_from=10,
        gated={**linear_gate(576), **adapter(576, 32)},
    ),
    "liquid-experts-2048": header(
        "liquid", 24, 2048, 50304, LIQUID_MOE, n_expert=16, gates_from=8,
        gated={**bottleneck_gate(2048, 64), **adapter(2048, 256)},
    ),
}  # fmt: skip


def table(f: GGUFFile) -> str:
    return "\n".join(f"## {name}\n{schema(plan_file(f, FILE_TYPES[name], Options()))}\n" for name in OFFERED)


@pytest.mark.parametrize("name", list(MODELS))
def test_recipe_table(name):
    path, found = TABLES / f"{name}.txt", table(MODELS[name])
    if os.environ.get("LIQUID_GOLDEN") == "rewrite":
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs; LIQUID_GOLDEN=rewrite writes it anew"
