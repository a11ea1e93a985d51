"""Router-Tuning's vectors beside plain models: a scope per granularity, refusals, the file that our own names give."""

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
from tests.mindskip import BASES, GATED, N_LAYER, SCOPES, routed_model, write_routed
from tests.tiny import save_checkpoint

FOREIGN = ("general.", "liquid.role.", "liquid.depth.threshold")


def converted(folder: Path) -> GGUFFile:
    out = folder.parent / f"{folder.name}.gguf"
    return open_gguf(converters.run(converters.plan(folder, "f32"), out).output)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("granularity", SCOPES)
def test_a_routed_model_is_the_same_model_with_gates(base: str, granularity: str, tmp_path: Path) -> None:
    folder = write_routed(base, tmp_path / "mod", granularity)
    ours = save_checkpoint(routed_model(base, granularity), tmp_path / "ours")
    told = converters.plan(folder).warnings
    assert len(told) == (granularity == "mlp_token") and all("input_layernorm" in line for line in told)
    with converted(folder) as f, converted(ours) as same:
        check_loadable(f)
        assert set(f.tensors) == set(same.tensors)
        for name in same.tensors:
            np.testing.assert_array_equal(f.array(name), same.array(name), err_msg=name)
        keys = [{k: v for k, v in one.metadata.items() if not k.startswith(FOREIGN)} for one in (f, same)]
        assert keys[0] == keys[1]
        spans = [int(layer in GATED) for layer in range(N_LAYER)]
        assert f.metadata["liquid.depth.gate_span"] == spans and f.metadata["liquid.depth.kv_policy"] == "project"
        assert f.metadata["liquid.depth.gate_scope"][GATED[0]] == SCOPES[granularity]


@pytest.mark.parametrize("name", ["MindSkip", ""])
def test_every_name_such_a_model_goes_by(name: str, tmp_path: Path) -> None:
    """The trainer keeps a plain model's name and puts routers beside its tensors."""
    what = converters.plan(write_routed("Llama", tmp_path / "mod", name=name, is_mod=None))
    assert what.architecture == "liquid" and what.hf_architecture == f"Llama{name}ForCausalLM"


def test_a_plain_model_stays_one(tmp_path: Path) -> None:
    folder = write_routed("Llama", tmp_path / "mod", name="", granularity="attn_token", is_mod=None)
    weights = {name: values for name, values in load_file(folder / "model.safetensors").items() if "router" not in name}
    save_file(weights, folder / "model.safetensors")
    assert converters.plan(folder).architecture == "llama"


@pytest.mark.parametrize("threshold", [0.5, 0.3, 1.0])
def test_a_gate_at_its_threshold_runs(threshold: float, tmp_path: Path) -> None:
    """The published code says w >= threshold, the library w > threshold."""
    with converted(write_routed("Llama", tmp_path / "mod", threshold=threshold)) as f:
        stored = np.float32(f.metadata["liquid.depth.threshold"])
        assert np.float32(threshold) > stored and np.nextafter(stored, np.float32(1)) == np.float32(threshold)


@pytest.mark.parametrize("granularity", ["attn_sequence", "mlp_sequence", "block_sequence", "sequence", None])
def test_decisions_for_whole_sequences_are_refused_with_the_reason(granularity: str | None, tmp_path: Path) -> None:
    folder = write_routed("Llama", tmp_path / "mod")
    words = json.loads((folder / "config.json").read_text())
    del words["granularity"]  # the trainer's default is attn_sequence
    (folder / "config.json").write_text(json.dumps({**words, **({"granularity": granularity} if granularity else {})}))
    with pytest.raises(LiquidError, match="one decision for a whole sequence") as caught:
        converters.plan(folder)
    assert "attn_token" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"is_mod": [True]}, "is_mod"),
        ({"is_mod": [False] * N_LAYER}, "is_mod"),
        ({"is_mod": "all"}, "is_mod"),
        ({"is_mod": [True] * N_LAYER}, r"lacks 2 tensors: model\.layers\.0\.router\.weight"),
        ({"is_mod": [False] * 5 + [True]}, r"3 of the checkpoint's .* tensors are unknown"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_routers_that_do_not_fit(changes: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=match):
        converters.plan(write_routed("Llama", tmp_path / "mod", **changes))
