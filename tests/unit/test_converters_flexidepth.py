"""FlexiDepth's names and keys: the same file as the same model under this project's names; adapters of odd sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from liquidcli import converters
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_checks import check_loadable
from liquidcli.gguf_file import GGUFFile, open_gguf
from tests.flexidepth import CONFIGS, published_model, write_published
from tests.tiny import save_checkpoint

FOREIGN = ("general.", "liquid.role.")


def converted(folder: Path, **options) -> GGUFFile:
    out = folder.parent / f"{folder.name}.gguf"
    return open_gguf(converters.run(converters.plan(folder, "f32", **options), out).output)


def change(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    words = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in words.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_published_names_give_the_same_file(kind: str, exact: bool, tmp_path: Path) -> None:
    model = published_model(kind)
    folder = write_published(kind, model, tmp_path / "dd")
    assert converters.plan(folder).warnings == ()
    ours = save_checkpoint(model, tmp_path / "ours")
    with converted(folder, exact_gate=exact) as f, converted(ours, exact_gate=exact) as same:
        check_loadable(f)
        assert set(f.tensors) == set(same.tensors) and ("blk.4.depth_gate_dec.weight" in f.tensors) == exact
        for name in same.tensors:
            np.testing.assert_array_equal(f.array(name), same.array(name), err_msg=name)
        keys = [{k: v for k, v in one.metadata.items() if not k.startswith(FOREIGN)} for one in (f, same)]
        assert keys[0] == keys[1]
        roles = dict(zip(f.metadata["liquid.role.tensors"], f.metadata["liquid.role.names"], strict=True))
        assert roles["blk.7.depth_skip_up.weight"] == "depth_skip_up"


def test_qwen3_has_its_norms_and_its_bias(tmp_path: Path) -> None:
    with converted(write_published("ddqwen3", published_model("ddqwen3"), tmp_path / "dd")) as f:
        assert f.metadata["liquid.rope.type"] == "neox" and f.metadata["liquid.attention.qk_norm"] == "head"
        assert f.tensors["blk.0.attn_k_norm.weight"].shape == (24,) and "blk.4.depth_gate.bias" in f.tensors
        assert "output.weight" not in f.tensors


def test_the_adapters_size_falls_back_to_the_routers_factor(tmp_path: Path) -> None:
    folder = write_published("ddllama", published_model("ddllama"), tmp_path / "dd", proj_reduction_factor=None)
    assert converters.plan(folder).size_bytes
    with pytest.raises(IntegrityError, match=r"router_proj\.gate_proj\.weight has the shape \[32, 128\]"):
        converters.plan(change(folder, proj_reduction_factor=8))


def test_adapters_are_filled_up_to_whole_blocks(tmp_path: Path) -> None:
    """20 units become 32; the new ones add nothing."""
    folder = write_published("ddllama", published_model("ddllama"), tmp_path / "dd", proj_reduction_factor=25)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if "router_proj" in name:
            weights[name] = np.ascontiguousarray(values[:20] if values.shape[0] == 32 else values[:, :20])
    save_file(weights, folder / "model.safetensors")
    with converted(folder) as f:
        check_loadable(f)
        up, down = (f.array(f"blk.5.depth_skip_{part}.weight") for part in ("up", "down"))
        assert up.shape == (32, 128) and down.shape == (128, 32)
        np.testing.assert_array_equal(up[:20], weights["model.layers.5.router_proj.down_proj.weight"])
        np.testing.assert_array_equal(down[:, :20], weights["model.layers.5.router_proj.up_proj.weight"])
        assert not up[20:].any() and not down[:, 20:].any() and not f.array("blk.5.depth_skip_gate.weight")[20:].any()


@pytest.mark.parametrize("layers", [[], [8], [4, 4], ["4"], None, "4"])
def test_routing_layers_that_are_not_there(tmp_path: Path, layers: object) -> None:
    folder = write_published("ddllama", published_model("ddllama"), tmp_path / "dd")
    with pytest.raises(IntegrityError, match="routing_layers"):
        converters.plan(change(folder, routing_layers=layers))


@pytest.mark.parametrize(
    ("key", "value"),
    [("router_force_mode", "run"), ("router_force_mode", "project"), ("router_gate_mode", "soft"), ("mlp_bias", True),
     ("hidden_act", "gelu"), ("use_sliding_window", True)],
)  # fmt: skip
def test_keys_that_would_change_the_maths_are_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = write_published("ddllama", published_model("ddllama"), tmp_path / "dd")
    with pytest.raises(LiquidError, match=key):
        converters.plan(change(folder, **{key: value}))
