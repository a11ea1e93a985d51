"""Hugging Face folders of the reference: config.json and safetensors, single or sharded; never a pickle.

Also reads plain Llama-shaped folders (tensor names `mlp.*`), to which gates may be attached for training.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from liquidcli.errors import IntegrityError, NotFoundError
from liquidcli.files import atomic_output

from .config import LiquidConfig
from .depth_config import DepthConfig
from .model import LiquidForCausalLM

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist, expected a Hugging Face checkpoint folder with it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise IntegrityError(f"{path} is not valid JSON: {err}") from err


def _shards(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise NotFoundError(f"{folder}: shard {missing[0]} is missing")
    return [folder / name for name in names]


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in _shards(folder):
        try:
            with safe_open(shard, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as err:
            raise IntegrityError(f"{shard} is not a readable safetensors file: {err}") from err
    return {name.replace(".mlp.", ".feed_forward."): tensor for name, tensor in tensors.items()}


def _infer(config: LiquidConfig, names: set[str]) -> LiquidConfig:
    """Fills in what only the tensors say: q/k/v and o biases of plain checkpoints, gate bias, folded gates."""
    if config.depth:
        has_bias = any(".depth_gate" in name and name.endswith(".head.bias") for name in names)
        unfolded = any(".depth_gate" in name and name.endswith(".dec.weight") for name in names)
        folded = config.depth.gate_kind == "bottleneck" and not unfolded
        config = replace(config, depth=replace(config.depth, gate_bias=has_bias, gate_folded=folded))
    return replace(
        config,
        attention_bias="model.layers.0.self_attn.q_proj.bias" in names,
        attention_out_bias="model.layers.0.self_attn.o_proj.bias" in names,
        tie_word_embeddings=config.tie_word_embeddings or "lm_head.weight" not in names,
    )


def from_pretrained(
    folder: Path | str, *, depth: DepthConfig | None = None, dtype: torch.dtype = torch.float32
) -> LiquidForCausalLM:
    """The model of a checkpoint folder. `depth` attaches fresh gates to a base that has none."""
    folder = Path(folder)
    tensors = _read_tensors(folder)
    config = _infer(LiquidConfig.from_dict(_read_json(folder / "config.json")), set(tensors))
    fresh = depth if config.depth is None else None
    model = LiquidForCausalLM(replace(config, depth=fresh or config.depth)).to(dtype)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    missing, unexpected = model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, strict=False)
    missing = [name for name in missing if not (fresh and ".depth_" in name)]
    if missing or unexpected:
        raise IntegrityError(
            f"{folder}: {len(missing)} tensors are missing and {len(unexpected)} match nothing,"
            f" first {(missing + unexpected)[:3]}"
        )
    return model.eval()


def save_pretrained(model: LiquidForCausalLM, folder: Path | str, *, max_shard_bytes: int = 5 << 30) -> None:
    """Writes config.json and the weights, sharded when they exceed `max_shard_bytes`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in model.state_dict().items():
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.detach().contiguous().cpu()
        filled += tensor.nbytes
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        with atomic_output(folder / name, sum(t.nbytes for t in shard.values())) as part:
            save_file(shard, part, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(t.nbytes for shard in shards for t in shard.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    _write_json(folder / "config.json", {**model.config.to_dict(), "torch_dtype": dtype})


def _write_json(path: Path, value: dict) -> None:
    with atomic_output(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
