"""What becomes of each tensor and which keys are written, per architecture: a changed table is a changed text.

`LIQUID_GOLDEN=rewrite make golden` writes the texts anew; read the diff before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liquidcli import converters
from liquidcli.reference import LiquidForCausalLM
from tests.flexidepth import published_model, write_published
from tests.hf_dense import make_config as make_dense
from tests.hf_dense import write_dense
from tests.hf_folders import write_llama
from tests.hf_mixtures import make_config as mixture_config
from tests.hf_mixtures import make_tensors, write_mixture
from tests.mindskip import write_routed
from tests.tiny import make_config, save_checkpoint
from tests.tiny_families import FAMILIES

TEXTS = Path(__file__).parent / "convert"
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SPANNED = {"gate_kind": "bottleneck", "gate_rank": 16, "gate_span": [1, 3, 0, 0, 2, 0], "adapter_size": 32}


def liquid(folder: Path) -> Path:
    keys = {**FAMILIES["llama4"], "depth": {**SPANNED, "gate_bias": True}}
    return save_checkpoint(LiquidForCausalLM(make_config(keys)), folder)


def liquid_gemma3(folder: Path) -> Path:
    return save_checkpoint(LiquidForCausalLM(make_config("gemma3-capped-span")), folder)


def mixture(family: str, moe: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> Callable[[Path], Path]:
    config = mixture_config(family, **changes)
    fused = family == "llama4_text"
    return lambda folder: write_mixture(folder, config, make_tensors(config, moe=moe, fused=fused))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda folder: write_llama(folder, {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "mistral": lambda folder: write_dense(folder, make_dense("mistral", sliding_window=16)),
    "qwen2": lambda folder: write_dense(folder, make_dense("qwen2")),
    "qwen3": lambda folder: write_dense(folder, make_dense("qwen3")),
    "gemma3_text": lambda folder: write_dense(folder, make_dense("gemma3_text", query_pre_attn_scalar=32)),
    "liquid": liquid,
    "liquid-gemma3": liquid_gemma3,
    "ddllama": lambda folder: write_published("ddllama", published_model("ddllama"), folder),
    "ddqwen3": lambda folder: write_published("ddqwen3", published_model("ddqwen3"), folder),
    "mindskip": lambda folder: write_routed("Llama", folder),
    "mixtral": mixture("mixtral", (0, 1), num_hidden_layers=2),
    "qwen3_moe": mixture("qwen3_moe", (0, 1), num_hidden_layers=2),
    "qwen3_moe-sparse": mixture("qwen3_moe", (1,), num_hidden_layers=2, decoder_sparse_step=2),
    "olmoe": mixture("olmoe", (0, 1), num_hidden_layers=2),
    "llama4": mixture("llama4_text", (1, 3), interleave_moe_layer_step=2),
    "llama4-chunks": mixture("llama4_text", attention_chunk_size=64),
}


def text(plan: converters.Plan) -> str:
    lines = [f"{plan.hf_architecture} -> {plan.architecture}, {plan.outtype}", ""]
    for field in plan.fields:
        value = field.as_json()
        lines.append(f"{field.key} [{value['type']}] = {str(value['value'])[:80]}")
    lines.append("")
    for output in plan.outputs:
        shape = "x".join(map(str, reversed(output.shape)))
        sources = " + ".join(source.name for source in output.sources) or "configuration"
        role = f" ({output.role})" if output.role else ""
        lines.append(f"{output.name} {shape} {output.type.name}{role} <- {output.transform.name}: {sources}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", MAKERS)
def test_plan(name: str, tmp_path: Path) -> None:
    found = text(converters.plan(MAKERS[name](tmp_path / "tiny"), "q8_0"))
    path = TEXTS / f"{name}.txt"
    if os.environ.get("LIQUID_GOLDEN") == "rewrite":
        TEXTS.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
