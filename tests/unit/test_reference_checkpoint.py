"""Checkpoint folders of the reference: what is written can be read, and a broken folder is one clear sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from liquidcli.errors import IntegrityError, NotFoundError
from liquidcli.reference import DepthConfig, from_pretrained, save_pretrained
from tests.tiny import make_model, make_tokenizer, random_tokens, save_checkpoint
from tests.tiny_families import ATTENTION, BASE, DROPS, EXITS, FAMILIES, GATES, N_LAYER, NO_GATES, SCOPES


@pytest.mark.parametrize(
    "family", ["bottleneck", "bottleneck-folded", "llama4", "tied", "plain", "exit-halves", "ffn-adapter"]
)
@pytest.mark.parametrize("max_shard_bytes", [50_000, 1 << 30], ids=["sharded", "single"])
def test_round_trip(family: str, max_shard_bytes: int, tmp_path: Path) -> None:
    model = make_model(family)
    save_checkpoint(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_bytes == 1 << 30)
    again = from_pretrained(tmp_path)
    assert again.config == model.config
    tokens = random_tokens(model.config, 1, 9)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_names_are_the_architectures(tmp_path: Path) -> None:
    save_pretrained(make_model("moe-span3-scaled"), tmp_path)
    names = {name.replace("model.layers.1.", "") for name in load_file(tmp_path / "model.safetensors")}
    assert {
        "depth_gate.enc.weight",
        "depth_gate.norm.weight",
        "depth_gate.dec.weight",
        "depth_gate.head.weight",
        "depth_adapter.gate_proj.weight",
        "depth_adapter.up_proj.weight",
        "depth_adapter.down_proj.weight",
        "feed_forward.router.weight",
        "feed_forward.experts.gate_up_proj",
        "feed_forward.experts.down_proj",
    } <= names
    depth = json.loads((tmp_path / "config.json").read_text())["depth"]
    assert "gate_bias" not in depth and "gate_folded" not in depth


def test_gates_can_be_attached_to_a_base(tmp_path: Path) -> None:
    model = make_model("plain")
    save_pretrained(model, tmp_path)
    gated = from_pretrained(tmp_path, depth=DepthConfig(gate_span=(1,) * N_LAYER, adapter_size=32))
    tokens = random_tokens(model.config, 1, 9)
    assert torch.equal(gated(tokens, depth="full").logits, model(tokens).logits)
    assert gated(tokens).trace.w.shape == (1, 9, N_LAYER)


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        from_pretrained(tmp_path)
    save_pretrained(make_model("linear"), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "model.layers.0.extra": torch.ones(1)}, weights)
    with pytest.raises(IntegrityError, match="1 match nothing"):
        from_pretrained(tmp_path)
    save_file({name: t for name, t in tensors.items() if "depth_gate" not in name}, weights)
    with pytest.raises(IntegrityError, match="tensors are missing"):
        from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(IntegrityError, match="not a readable safetensors"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    weights.unlink()
    with pytest.raises(NotFoundError, match="index"):
        from_pretrained(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    save_pretrained(make_model("linear"), tmp_path, max_shard_bytes=50_000)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(NotFoundError, match=shard.name):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_without_the_extra_the_import_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from liquidcli.errors import LiquidError\n"
        "try:\n    import liquidcli.reference\n"
        "except LiquidError as err:\n    print(err, '|', err.hint)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert missing in out and "pip install 'liquid-depth[train]'" in out


@pytest.mark.parametrize("family", [*GATES, *SCOPES, *EXITS, *DROPS, "moe-span3-scaled", "llama4", "qk-full"])
def test_tiny_gates_have_unit_spread_and_both_outcomes(family: str) -> None:
    model = make_model(family)
    trace = model(random_tokens(model.config, 2, 96, seed=5)).trace
    assert trace.z.shape[-1] == len(model.config.gates)
    for gate in range(trace.z.shape[-1]):
        reached = trace.z[..., gate].isfinite()
        assert 0.6 < trace.z[..., gate][reached].std() < 1.6
        assert 0.2 < trace.run[..., gate][reached].float().mean() < 0.97


SAME_TENSORS = [
    name for name, keys in ATTENTION.items()
    if not set(keys) & {"qk_norm", "attention_bias", "head_dim", "num_key_value_heads", "tie_word_embeddings"}
]  # fmt: skip


@pytest.mark.parametrize("family", [name for name in SAME_TENSORS if name != "rope-norm"])
def test_each_odd_key_matters(family: str) -> None:
    """A key whose odd value changed nothing would prove nothing in the parity tests."""
    odd, plain = make_model({**FAMILIES[family], "depth": None}), make_model("plain")
    plain.load_state_dict(odd.state_dict())
    tokens = random_tokens(odd.config, 2, 64)
    expected = plain(tokens).logits
    assert (odd(tokens).logits - expected).abs().max() > 0.01 * expected.abs().max()


def test_tokenizer_fits_the_vocabulary() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.get_vocab_size() == BASE["vocab_size"]
    text = "the river runs deeper, ±1°"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert NO_GATES["plain"] == {}
