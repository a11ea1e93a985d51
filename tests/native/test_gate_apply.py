"""A pack applied to a quantized base: at full depth not one bit differs from the base, at the gates' depth it does."""

from __future__ import annotations

import pytest

from liquidcli.gates.apply import apply_pack
from liquidcli.runtime.depth import DepthPolicy
from liquidcli.runtime.engine import Engine
from tests.gate_packs import write_tiny_pack
from tests.native.test_identity import BODY_TYPES, SHAPES, digest, write_model


@pytest.mark.parametrize("kind", [BODY_TYPES[0], BODY_TYPES[-1]], ids=lambda kind: kind.name)
def test_full_depth_is_the_base_to_the_bit(tmp_path, kind):
    base = write_model(tmp_path / "base.gguf", SHAPES["tiny"], body=kind)
    spans = (0, 1, 2, 0, *[0] * (SHAPES["tiny"].n_layer - 4))
    pack = write_tiny_pack(tmp_path / "pack.gguf", base, spans=spans, always_run_tokens=2)
    apply_pack(base, pack, tmp_path / "out.gguf")
    assert digest(tmp_path / "out.gguf", "full") == digest(base)
    assert digest(tmp_path / "out.gguf") != digest(base)


def test_the_first_positions_run_every_layer(tmp_path):
    base = write_model(tmp_path / "base.gguf", SHAPES["tiny"])
    spans = (0, 1, 1, 0, *[0] * (SHAPES["tiny"].n_layer - 4))
    pack = write_tiny_pack(tmp_path / "pack.gguf", base, spans=spans, always_run_tokens=3, threshold=1.0)
    apply_pack(base, pack, tmp_path / "out.gguf")
    with Engine.load(tmp_path / "out.gguf", n_ctx=64) as engine:
        engine.set_depth(DepthPolicy.parse("auto"))
        engine.set_trace(True)
        engine.decode(list(range(2, 12)))
        run = engine.trace().run
    assert run[:3].all() and not run[3:].any()
