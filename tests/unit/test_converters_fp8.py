"""FP8 with a scale a block: the numbers that PyTorch reads, streamed; what does not fit is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from liquidcli import converters
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_file import open_gguf
from tests.hf_folders import CONFIG, llama_tensors, write_json, write_llama

BLOCK = (24, 16)
METHOD = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"}


def write_fp8(folder: Path, **method) -> dict[str, np.ndarray]:
    """The folder, and what its matrices stand for."""
    tensors, meant = {}, {}
    for name, values in llama_tensors().items():
        if "_proj." not in name:
            tensors[name] = torch.from_numpy(values).bfloat16()
            continue
        blocks = [-(-size // side) for size, side in zip(values.shape, BLOCK, strict=True)]
        scale = torch.rand(blocks, generator=torch.Generator().manual_seed(len(name))) + 0.5
        wide = scale.repeat_interleave(BLOCK[0], 0)[: values.shape[0]].repeat_interleave(BLOCK[1], 1)
        tensors[name] = (torch.from_numpy(values) * 40).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
        meant[name] = (tensors[name].float() * wide[:, : values.shape[1]]).numpy()
    write_llama(folder, {"quantization_config": {**METHOD, **method}})
    save_file(tensors, folder / "model.safetensors")
    return meant


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1000])
def test_the_numbers_are_pytorchs(piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["liquidcli.converters.run"], "PIECE_BYTES", piece_bytes)
    meant = write_fp8(tmp_path / "m")
    plan = converters.plan(tmp_path / "m", "f32")
    assert plan.warnings == () and converters.plan(tmp_path / "m").outtype == "bf16"
    with open_gguf(converters.run(plan, tmp_path / "m.gguf").output) as f:
        for part in ("ffn_up", "ffn_down", "attn_v"):
            name = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_v": "self_attn.v_proj"}[part]
            np.testing.assert_array_equal(f.array(f"blk.1.{part}.weight"), meant[f"model.layers.1.{name}.weight"])


def test_every_e4m3_number() -> None:
    from liquidcli.converters.fp8 import _e4m3

    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(_e4m3(), every)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight_block_size": None}, "weight_block_size"),
        ({"weight_block_size": [0, 16]}, "weight_block_size"),
        ({"weight_block_size": [16, 16]}, "_scale_inv is F32"),
        ({"quant_method": "gptq"}, "quantized already"),
    ],
)
def test_other_methods_are_refused(changes: dict, match: str, tmp_path: Path) -> None:
    write_fp8(tmp_path / "m", **changes)
    with pytest.raises(LiquidError, match=match):
        converters.plan(tmp_path / "m")


def test_scales_without_a_method_are_unknown_tensors(tmp_path: Path) -> None:
    write_fp8(tmp_path / "m")
    write_json(tmp_path / "m" / "config.json", CONFIG)
    with pytest.raises(IntegrityError, match="_scale_inv"):
        converters.plan(tmp_path / "m")


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    write_fp8(tmp_path / "m")
    plan = converters.plan(tmp_path / "m", "f16")
    path = tmp_path / "m" / "model.safetensors"
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    assert json.loads(path.read_bytes()[8 : 8 + header_bytes])
    path.write_bytes(path.read_bytes()[: 8 + header_bytes + 100])
    with pytest.raises(IntegrityError, match="changed while it was read"):
        converters.run(plan, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
