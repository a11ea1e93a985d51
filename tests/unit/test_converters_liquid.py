"""`liquid` folders against the same models written directly: each family, key and tensor; folding; FlexiDepth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from liquidcli import converters
from liquidcli.errors import IntegrityError, LiquidError
from liquidcli.gguf_checks import check_loadable
from liquidcli.gguf_file import GGUFFile, open_gguf
from liquidcli.reference import DepthConfig, LiquidConfig, LiquidForCausalLM
from tests.tiny import make_config, save_checkpoint
from tests.tiny_families import FAMILIES
from tests.tiny_gguf import write_gguf

# written always by the converter, by the direct writer only where they differ from zero
DEFAULTS = {"liquid.depth.min_layers": 0, "liquid.depth.always_run_tokens": 0}
# the direct writer calls tokens like <|unused3|> user-defined, transformers' rules say control
OTHER = ("general.", "liquid.role.", "tokenizer.ggml.token_type", "liquid.rope.scaling.yarn_attn_factor")


def random_model(family: str) -> LiquidForCausalLM:
    """Every weight random, norms and biases too, so that nothing can be left out or swapped unseen."""
    torch.manual_seed(3)
    model = LiquidForCausalLM(make_config(family)).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_()
    return model


def converted(model: LiquidForCausalLM, folder: Path, outtype: str = "f32", **options) -> GGUFFile:
    what = converters.plan(save_checkpoint(model, folder), outtype, **options)
    converters.run(what, folder / "out.gguf")
    return open_gguf(folder / "out.gguf")


def compared(f: GGUFFile) -> dict:
    return {**DEFAULTS, **{key: value for key, value in f.metadata.items() if not key.startswith(OTHER)}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_arrives_whole(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    with converted(model, tmp_path / "m", exact_gate=True) as ours, open_gguf(
        write_gguf(model, tmp_path / "direct.gguf")
    ) as direct:
        assert set(ours.tensors) == set(direct.tensors)
        for name in direct.tensors:
            np.testing.assert_array_equal(ours.array(name), direct.array(name), err_msg=name)
            assert ours.tensors[name].shape == direct.tensors[name].shape
        assert compared(ours) == compared(direct)
        kinds = {key: ours.metadata_types[key] for key in direct.metadata_types if key in ours.metadata}
        wanted = {key: kind for key, kind in direct.metadata_types.items() if key in kinds}
        gate_span = "liquid.depth.gate_span"  # u32 here, i32 as the gguf package writes lists
        kinds.pop(gate_span, None), wanted.pop(gate_span, None)
        assert kinds == wanted


def test_gate_span_is_unsigned(tmp_path: Path) -> None:
    with converted(random_model("linear"), tmp_path / "m") as f:
        assert [kind.name for kind in f.metadata_types["liquid.depth.gate_span"]] == ["ARRAY", "UINT32"]


@pytest.mark.parametrize("family", ["bottleneck", "span3-scaled", "flexidepth", "attn-ffn-bottleneck"])
def test_folding_leaves_the_gate_as_it_is(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    with converted(model, tmp_path / "m") as f:
        assert not [name for name in f.tensors if "depth_gate_dec" in name]
        for place in model.config.gates:
            gate, name = getattr(model.model.layers[place.layer], place.stem), f"blk.{place.layer}.{place.stem}"
            n = torch.randn(64, model.config.hidden_size, generator=torch.Generator().manual_seed(place.layer))
            inner = gate.norm(gate.enc(n)).tanh().numpy()
            z = inner @ f.array(f"{name}.weight")
            bias = f.array(f"{name}.bias")[0] if gate.head.bias is not None else 0.0
            np.testing.assert_allclose(z + bias, gate(n).numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("family", ["attn-ffn-bottleneck", "exits-bottleneck", "every-scope"])
def test_gates_of_halves_and_exits_stay_f32_and_pass_the_checks(family: str, tmp_path: Path) -> None:
    model = random_model(family)
    for fold in (True, False):
        with converted(model, tmp_path / str(fold), "q8_0", exact_gate=not fold) as f:
            check_loadable(f)
            gates = [info.type.name for name, info in f.tensors.items() if ".depth_gate" in name]
            assert set(gates) == {"F32"}
            assert len(gates) == len(model.config.gates) * (3 + (not fold) + model.config.depth.gate_bias)


def test_gates_stay_f32_and_adapters_follow(tmp_path: Path) -> None:
    model = random_model("span3-scaled")
    with converted(model, tmp_path / "m", "q8_0") as f:
        gates = {info.type.name for name, info in f.tensors.items() if "depth_gate" in name}
        skips = {info.type.name for name, info in f.tensors.items() if "depth_skip" in name}
        assert gates == {"F32"} and skips == {"Q8_0"}
        roles = dict(zip(f.metadata["liquid.role.tensors"], f.metadata["liquid.role.names"], strict=True))
        assert set(roles) == {name for name in f.tensors if ".depth_" in name}
        assert roles["blk.0.depth_gate_enc.weight"] == "depth_gate"
        assert roles["blk.1.depth_skip_down.weight"] == "depth_skip_down"


def test_routers_stay_f32(tmp_path: Path) -> None:
    with converted(random_model("moe"), tmp_path / "m", "bf16") as f:
        types = {name: info.type.name for name, info in f.tensors.items()}
        assert types["blk.0.ffn_gate_inp.weight"] == "F32" and types["blk.0.ffn_gate_exps.weight"] == "BF16"


def test_every_key_of_the_reference_is_read(tmp_path: Path) -> None:
    """A key that LiquidConfig knows and the converter does not would be reported as unknown."""
    folder = save_checkpoint(random_model("llama4"), tmp_path / "m")
    words = json.loads((folder / "config.json").read_text())
    assert set(words) - {"depth", "model_type", "architectures", "torch_dtype"} == {
        *LiquidConfig.__dataclass_fields__
    } - {"depth"}
    assert set(words["depth"]) | {"gate_scope", "gate_exit", "gate_bias", "gate_folded"} == {
        *DepthConfig.__dataclass_fields__
    }
    assert converters.plan(folder).warnings == ()


def change(folder: Path, **changes) -> Path:
    """config.json with other values; `depth__x` changes depth.x."""
    path = folder / "config.json"
    words = json.loads(path.read_text())
    for name, value in changes.items():
        inner, _, key = name.rpartition("__")
        (words[inner] if inner else words)[key] = value
    path.write_text(json.dumps(words))
    return folder


def test_optional_depth_keys_are_written_too(tmp_path: Path) -> None:
    folder = change(
        save_checkpoint(random_model("linear-adapter"), tmp_path / "m"), depth__kv_policy="drop",
        depth__calibration={"threshold": [0, 0.5, 1.0], "executed_fraction": [1.0, 0.8, 0.1]},
        depth__gate_scope=["layer"] * 6, depth__gate_exit=[False] * 6,
    )  # fmt: skip
    converters.run(converters.plan(folder, "f32"), tmp_path / "out.gguf")
    with open_gguf(tmp_path / "out.gguf") as f:
        assert f.metadata["liquid.depth.kv_policy"] == "drop"
        assert f.metadata["liquid.depth.calibration.threshold"] == [0.0, 0.5, 1.0]
        assert [kind.name for kind in f.metadata_types["liquid.depth.calibration.executed_fraction"]][1] == "FLOAT32"
        assert [kind.name for kind in f.metadata_types["liquid.depth.gate_exit"]][1] == "BOOL"
        assert [kind.name for kind in f.metadata_types["liquid.depth.gate_scope"]][1] == "STRING"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"depth__gate_span": [2, 1, 1, 1, 1, 1]}, "inside the span of the one before"),
        ({"depth__gate_span": [0, 0, 0, 0, 0, 2]}, "spans 2 of 6 layers"),
        ({"depth__gate_span": [1] * 5}, "a list of 6 int"),
        ({"depth__gate_span": [-1] * 6}, "a list of 6 int"),
        ({"depth__gate_kind": "cubic"}, "linear, bottleneck"),
        ({"depth__gate_kind": "bottleneck"}, "gate_rank is missing"),
        ({"depth__threshold": 1.5}, "threshold"),
        ({"depth__gate_scope": ["half"] * 6}, "the scope 'half'"),
        ({"depth__gate_scope": ["attn"] * 6, "depth__gate_exit": [True] * 6}, "must have span 1 and be no exit"),
        ({"depth__gate_exit": [True] * 6}, "all that remain were expected"),
        ({"depth__gate_span": [0, 2, 4, 0, 0, 0], "depth__gate_exit": [i == 2 for i in range(6)]}, "inside the span"),
        ({"depth__gate_span": [1, 1, 1, 1, 1, 0], "depth__gate_exit": [False] * 5 + [True]}, "an exit but no gate"),
        ({"depth__gate_span": [1] * 5 + [0], "depth__gate_scope": ["ffn"] * 6}, "has a scope or an exit but no gate"),
        ({"depth__calibration": {"threshold": [0.5, 0.1], "executed_fraction": [1, 1]}}, "not sorted"),
        ({"depth__calibration": {"threshold": [0.5], "executed_fraction": []}}, "executed_fraction"),
        ({"rope_layout": "gptj"}, "norm, neox, none"),
        ({"layer_types": ["sliding_attention"] * 6}, "size is missing"),
        ({"layer_types": ["sliding_attention", "chunked_attention"] * 3, "sliding_window": 5}, "expected one of"),
        ({"moe_layers": [9], "num_local_experts": 2, "num_experts_per_tok": 1}, "layer too many"),
        ({"moe_layers": [0], "num_local_experts": 2, "num_experts_per_tok": 3}, "3 experts per token of 2"),
        ({"num_local_experts": 1 << 40}, "num_local_experts"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"intermediate_size_mlp": 0}, "no intermediate_size_mlp"),
    ],
)
def test_configurations_that_cannot_be_meant(tmp_path: Path, changes: dict, match: str) -> None:
    with pytest.raises(LiquidError, match=match):
        converters.plan(change(save_checkpoint(random_model("linear-adapter"), tmp_path / "m"), **changes))


def test_a_gate_without_its_tensors(tmp_path: Path) -> None:
    folder = save_checkpoint(random_model("plain"), tmp_path / "m")
    with pytest.raises(IntegrityError, match=r"lacks 6 tensors: model\.layers\.0\.depth_gate\.head\.weight"):
        converters.plan(change(folder, depth={"gate_kind": "linear", "gate_span": [1] * 6}))
    folder = save_checkpoint(random_model("linear"), tmp_path / "n")
    with pytest.raises(IntegrityError, match=r"12 of the checkpoint's .* tensors are unknown"):
        converters.plan(change(folder, depth=None))


def test_what_is_liquid_already_has_no_stock_architecture(tmp_path: Path) -> None:
    for family in ("plain", "linear"):
        with pytest.raises(LiquidError, match=r"--stock: .* no architecture for this checkpoint") as caught:
            converters.plan(save_checkpoint(random_model(family), tmp_path / family), stock=True)
        assert "leave out --stock" in caught.value.hint
